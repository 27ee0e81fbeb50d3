import { defineConfig } from "vitest/config";

// `npm run dev` serves the page with live reload and passes the rest on to a running service.
const service = "127.0.0.1:8000";

export default defineConfig({
  build: {
    outDir: "../src/klinesync/web",
    emptyOutDir: true,
    target: "es2023",
    // The service forbids data the page did not bring; a file of its own is cached, too.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: {
      "/api": `http://${service}`,
      "/ws": { target: `ws://${service}`, ws: true },
    },
  },
  test: {
    include: ["test/**/*.test.{ts,js}"],
    environment: "node",
  },
});
