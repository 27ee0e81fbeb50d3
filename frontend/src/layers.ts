// Layers: which drawings and indicators are visible: the proposals of the catalogue, and the choices of the reader.

import type { Layer, LayerGroup } from "./drawing.ts";

/** Visibility that the reader chose, by the key of the layer. */
export type Choices = ReadonlyMap<string, boolean>;

/** Key of the group of features that the catalogue does not name, such as those of an added overlay. */
const OTHERS = "others";

export class Layers {
  readonly #layers = new Map<string, { readonly group: LayerGroup; readonly layer: Layer }>();

  /** `roomy`: the page has room for panes that the reader did not ask for. */
  constructor(
    readonly groups: readonly LayerGroup[] = [],
    readonly choices: Choices = new Map(),
    readonly roomy = true,
  ) {
    for (const group of groups) for (const layer of group.layers) this.#layers.set(layer.key, { group, layer });
  }

  /** These layers with one more choice. */
  choose(keys: readonly string[], visible: boolean): Layers {
    return new Layers(this.groups, new Map([...this.choices, ...keys.map((key) => [key, visible] as const)]), this.roomy);
  }

  /** These layers, and a group of the keys that the catalogue does not name. */
  including(keys: readonly string[]): Layers {
    const unknown = keys.filter((key) => this.find(key) === null);
    if (unknown.length === 0) return this;
    const layers = unknown.map((key): Layer => ({ key, label: key, defaultVisible: true, look: "line" }));
    const others = this.groups.find((group) => group.key === OTHERS);
    const group: LayerGroup = { key: OTHERS, label: "Others", pane: null, layers: [...(others?.layers ?? []), ...layers] };
    return new Layers([...this.groups.filter((other) => other !== others), group], this.choices, this.roomy);
  }

  /** The layer of a feature or of an indicator's output, for example `macd_12_26_9.macdsignal`; null for none. */
  find(name: string): { readonly group: LayerGroup; readonly layer: Layer } | null {
    return this.#layers.get(name) ?? this.#layers.get(name.split(".")[0] ?? name) ?? null;
  }

  /** Whether the layer is visible. A name without a layer is. */
  visible(name: string): boolean {
    const match = this.find(name);
    if (match === null) return true;
    const { group, layer } = match;
    const chosen = this.choices.get(layer.key);
    if (chosen !== undefined) return chosen;
    return layer.defaultVisible && (this.roomy || group.pane !== "own");
  }
}

/** Choices as text, for the browser's storage. */
export function encodeChoices(choices: Choices): string {
  return JSON.stringify(Object.fromEntries(choices));
}

/** The choices in a text of `encodeChoices`; none for any other text. */
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
