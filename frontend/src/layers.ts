// Layers: which drawings and indicators the reader wants to see: what the catalogue proposes, unless chosen otherwise.

import type { Layer, LayerGroup } from "./drawing.ts";

/** What a reader has chosen, by a layer's key. */
export type Choices = ReadonlyMap<string, boolean>;

/** Drawings that the catalogue does not name: those of an overlay that somebody has added. */
const OTHERS = "others";

export class Layers {
  readonly #layers = new Map<string, { readonly group: LayerGroup; readonly layer: Layer }>();

  /** `roomy`: there is room for panes beside the price, so that they need not be asked for. */
  constructor(
    readonly groups: readonly LayerGroup[] = [],
    readonly choices: Choices = new Map(),
    readonly roomy = true,
  ) {
    for (const group of groups) for (const layer of group.layers) this.#layers.set(layer.key, { group, layer });
  }

  /** The same with this choice. */
  choose(keys: readonly string[], visible: boolean): Layers {
    return new Layers(this.groups, new Map([...this.choices, ...keys.map((key) => [key, visible] as const)]), this.roomy);
  }

  /** The same with a group of those keys that the catalogue does not name. */
  including(keys: readonly string[]): Layers {
    const unknown = keys.filter((key) => this.find(key) === null);
    if (unknown.length === 0) return this;
    const layers = unknown.map((key): Layer => ({ key, label: key, defaultVisible: true, look: "line" }));
    const others = this.groups.find((group) => group.key === OTHERS);
    const group: LayerGroup = { key: OTHERS, label: "Others", pane: null, layers: [...(others?.layers ?? []), ...layers] };
    return new Layers([...this.groups.filter((one) => one !== others), group], this.choices, this.roomy);
  }

  /** The layer of a feature or of an indicator's values, `macd_12_26_9.macdsignal` say. */
  find(name: string): { readonly group: LayerGroup; readonly layer: Layer } | null {
    return this.#layers.get(name) ?? this.#layers.get(name.split(".")[0] ?? name) ?? null;
  }

  /** Whether it is shown. What the catalogue does not name is. */
  visible(name: string): boolean {
    const found = this.find(name);
    if (found === null) return true;
    const { group, layer } = found;
    const chosen = this.choices.get(layer.key);
    if (chosen !== undefined) return chosen;
    return layer.defaultVisible && (this.roomy || group.pane !== "own");
  }
}

/** Choices as text, for the browser's storage. */
export function encodeChoices(choices: Choices): string {
  return JSON.stringify(Object.fromEntries(choices));
}

/** What `encodeChoices` wrote; no choices when it is something else. */
export function decodeChoices(text: string | null): Choices {
  if (text === null) return new Map();
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return new Map();
    return new Map(Object.entries(value).filter((entry): entry is [string, boolean] => typeof entry[1] === "boolean"));
  } catch (error) {
    if (error instanceof SyntaxError) return new Map();
    throw error;
  }
}
