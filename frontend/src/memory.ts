// Memory: the reader's choices in the browser's storage. Where storage is off, a choice holds until the page is closed.

import { type Choices, decodeChoices, encodeChoices } from "./layers.ts";
import { parseSeries, type Series } from "./series.ts";

const LAST_SERIES_KEY = "klinesync.series";
const LAYERS_KEY = "klinesync.layers";

export function rememberSeries(chosen: Series): void {
  write(LAST_SERIES_KEY, chosen.id);
}

/** The service refuses this series: the next visit does not start with it. */
export function forgetSeries(refused: Series): void {
  if (read(LAST_SERIES_KEY) === refused.id) write(LAST_SERIES_KEY, null);
}

export function rememberedSeries(): Series | null {
  return parseSeries(read(LAST_SERIES_KEY) ?? "");
}

export function rememberChoices(choices: Choices): void {
  write(LAYERS_KEY, encodeChoices(choices));
}

export function rememberedChoices(): Choices {
  return decodeChoices(read(LAYERS_KEY));
}

function write(key: string, text: string | null): void {
  try {
    if (text === null) localStorage.removeItem(key);
    else localStorage.setItem(key, text);
  } catch {
    // Storage is off.
  }
}

function read(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}
