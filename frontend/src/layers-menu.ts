// LayersMenu: the layers that the reader wants to see, and the boxes that show and hide them.

import { element } from "./dom.ts";
import type { LayerGroup } from "./drawing.ts";
import { Layers } from "./layers.ts";
import { rememberChoices, rememberedChoices } from "./memory.ts";

export class LayersMenu {
  readonly #button = element("layers", HTMLButtonElement);
  readonly #list = element("layers-list", HTMLDivElement);
  #layers = new Layers();
  #changed: (() => void) | null = null;

  /** Calls `changed` when the reader shows or hides layers. */
  bind(changed: () => void): void {
    this.#changed = changed;
  }

  get layers(): Layers {
    return this.#layers;
  }

  /** Offers these groups. `roomy`: the page has room for panes that the reader did not ask for. */
  offer(groups: readonly LayerGroup[], roomy: boolean): void {
    const { choices } = this.#layers;
    this.#set(new Layers(groups, choices.size > 0 ? choices : rememberedChoices(), roomy));
  }

  /** Offers these features too, which the catalogue may not name. */
  include(features: readonly string[]): void {
    this.#set(this.#layers.including(features));
  }

  #choose(keys: readonly string[], visible: boolean): void {
    this.#set(this.#layers.choose(keys, visible));
    rememberChoices(this.#layers.choices);
    this.#changed?.();
  }

  #set(layers: Layers): void {
    const same = this.#layers.groups === layers.groups;
    this.#layers = layers;
    this.#button.hidden = layers.groups.length === 0;
    if (!same) this.#list.replaceChildren(...layers.groups.map((group) => this.#groupOf(group)));
    this.#check();
  }

  #groupOf(group: LayerGroup): HTMLElement {
    const part = document.createElement("div");
    part.className = "layers-group";
    part.append(this.#box(group.label, group.layers.map((layer) => layer.key)));
    const single = group.layers.length === 1 && group.layers[0]?.key === group.key;
    if (single) return part;
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
    box.addEventListener("change", () => this.#choose(keys, box.checked));
    label.append(box, text);
    return label;
  }

  #check(): void {
    for (const box of this.#list.querySelectorAll<HTMLInputElement>("input")) {
      const keys = (box.dataset["keys"] ?? "").split(" ");
      const visible = keys.filter((key) => this.#layers.visible(key));
      box.checked = visible.length > 0;
      box.indeterminate = visible.length > 0 && visible.length < keys.length;
    }
  }
}
