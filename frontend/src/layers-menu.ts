// LayersMenu: the boxes that show and hide indicators and drawings.

import { element } from "./dom.ts";
import type { LayerGroup } from "./drawing.ts";
import type { Layers } from "./layers.ts";

export class LayersMenu {
  readonly #button = element("layers", HTMLButtonElement);
  readonly #list = element("layers-list", HTMLDivElement);
  #layers: Layers | null = null;

  /** `choose` is told which keys are to be shown or hidden. */
  constructor(private readonly choose: (keys: readonly string[], visible: boolean) => void) {}

  /** What there is, and what is shown of it. Nothing to choose from: the menu is not offered. */
  show(layers: Layers): void {
    const same = this.#layers?.groups === layers.groups;
    this.#layers = layers;
    this.#button.hidden = layers.groups.length === 0;
    if (!same) this.#list.replaceChildren(...layers.groups.map((group) => this.#groupOf(group)));
    this.#check();
  }

  #groupOf(group: LayerGroup): HTMLElement {
    const part = document.createElement("div");
    part.className = "layers-group";
    part.append(this.#box(group.label, group.layers.map((layer) => layer.key)));
    const only = group.layers.length === 1 && group.layers[0]?.key === group.key;
    if (only) return part;
    const inner = document.createElement("div");
    inner.className = "layers-inner";
    inner.append(...group.layers.map((layer) => this.#box(layer.label, [layer.key])));
    part.append(inner);
    return part;
  }

  #box(text: string, keys: readonly string[]): HTMLLabelElement {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.dataset["keys"] = keys.join(" ");
    box.addEventListener("change", () => this.choose(keys, box.checked));
    label.append(box, text);
    return label;
  }

  #check(): void {
    for (const box of this.#list.querySelectorAll<HTMLInputElement>("input")) {
      const keys = (box.dataset["keys"] ?? "").split(" ");
      const shown = keys.filter((key) => this.#layers?.visible(key));
      box.checked = shown.length > 0;
      box.indeterminate = shown.length > 0 && shown.length < keys.length;
    }
  }
}
