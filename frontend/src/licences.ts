// The licences of what the page is made from; a chunk of its own, loaded when the reader asks.

import inter from "../node_modules/@fontsource-variable/inter/LICENSE?raw";
import lightweightCharts from "../node_modules/lightweight-charts/LICENSE?raw";
import { element } from "./dom.ts";
// The package comes without its licence file.
import fancyCanvas from "./fancy-canvas-licence.txt?raw";

const WORKS: readonly (readonly [string, string])[] = [
  ["TradingView Lightweight Charts\nCopyright (c) 2026 TradingView, Inc. https://www.tradingview.com/", lightweightCharts],
  ["fancy-canvas, part of Lightweight Charts", fancyCanvas],
  ["Inter, the typeface", inter],
];

export function showLicences(): void {
  const text = element("licences-text", HTMLPreElement);
  const dialog = element("licences-dialog", HTMLDialogElement);
  text.textContent = WORKS.map(([title, licence]) => `${title}\n\n${licence.trimEnd()}`).join(`\n\n\n${"-".repeat(72)}\n\n\n`);
  const close = (): void => dialog.close();
  const button = element("licences-close", HTMLButtonElement);
  button.addEventListener("click", close);
  dialog.addEventListener("close", () => button.removeEventListener("click", close), { once: true });
  dialog.showModal();
  text.focus();
}
