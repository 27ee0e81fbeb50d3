// Theme: dark or light, by the preference of the system until the reader chooses. The colours are in page.css.

export type Theme = "dark" | "light";

const KEY = "klinesync.theme";

export interface Palette {
  readonly background: string;
  readonly grid: string;
  readonly text: string;
  readonly crosshair: string;
  readonly crosshairLabel: string;
  readonly up: string;
  readonly down: string;
  readonly upForming: string;
  readonly downForming: string;
  readonly upVolume: string;
  readonly downVolume: string;
  readonly stale: string;
  readonly staleBody: string;
  readonly gap: string;
  readonly lost: string;
}

/** Applies the stored choice, if there is one. */
export function applyStoredTheme(): void {
  const stored = readStored();
  if (stored !== null) document.documentElement.dataset["theme"] = stored;
}

export function currentTheme(): Theme {
  const chosen = document.documentElement.dataset["theme"];
  if (chosen === "dark" || chosen === "light") return chosen;
  return lightPreferred().matches ? "light" : "dark";
}

export function switchTheme(): void {
  const theme: Theme = currentTheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset["theme"] = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Storage is off: the choice holds until the page is closed.
  }
}

/** Calls `call` when the preference of the system changes. */
export function onSystemTheme(call: () => void): void {
  lightPreferred().addEventListener("change", call);
}

/** The colours of the present theme, as the browser computes them. */
export function readPalette(): Palette {
  const probe = document.createElement("span");
  document.body.append(probe);
  const colour = (name: string): string => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const palette: Palette = {
    background: colour("stage"),
    grid: colour("grid"),
    text: colour("muted"),
    crosshair: colour("faint"),
    crosshairLabel: colour("crosshair-label"),
    up: colour("up"),
    down: colour("down"),
    upForming: colour("up-forming"),
    downForming: colour("down-forming"),
    upVolume: colour("up-volume"),
    downVolume: colour("down-volume"),
    stale: colour("stale"),
    staleBody: colour("stale-body"),
    gap: colour("warn"),
    lost: colour("bad"),
  };
  probe.remove();
  return palette;
}

/** One rem in pixels; large screens have a larger one. */
export function remPx(): number {
  return Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
}

function lightPreferred(): MediaQueryList {
  return matchMedia("(prefers-color-scheme: light)");
}

function readStored(): Theme | null {
  try {
    const stored = localStorage.getItem(KEY);
    return stored === "dark" || stored === "light" ? stored : null;
  } catch {
    return null;
  }
}
