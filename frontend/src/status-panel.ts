// StatusPanel: shows the lamp at the top of the page, in the panel behind it, and in the icon of the tab.

import { element, setText } from "./dom.ts";
import { formatAge } from "./format.ts";
import type { Fact, Lamp, Tone } from "./lamp.ts";

export class StatusPanel {
  readonly #button = element("status", HTMLButtonElement);
  readonly #text = element("status-text", HTMLSpanElement);
  readonly #age = element("status-age", HTMLSpanElement);
  readonly #announced = element("status-said", HTMLSpanElement);
  readonly #title = element("panel-title", HTMLHeadingElement);
  readonly #reason = element("panel-reason", HTMLParagraphElement);
  readonly #facts = element("panel-facts", HTMLDListElement);
  readonly #icon = element("icon", HTMLLinkElement);
  readonly #probe = element("status-dot", HTMLSpanElement);
  #shownFacts = "";
  #shownIcon = "";

  show(lamp: Lamp): void {
    const { tone, label, age, reason } = lamp;
    this.#button.dataset["tone"] = tone;
    setText(this.#text, label);
    // The age changes every second, and is hidden from screen readers, which announce changes of the state alone.
    setText(this.#age, age === null ? "" : formatAge(age));
    setText(this.#announced, reason === null ? label : `${label}: ${reason}`);
    setText(this.#title, label);
    setText(this.#reason, reason ?? (tone === "good" ? "The exchange, the stream and the candles are in order." : ""));
    this.#showFacts(lamp.facts);
    this.#showIcon(tone);
  }

  #showFacts(facts: readonly Fact[]): void {
    const text = JSON.stringify(facts);
    if (text === this.#shownFacts) return;
    this.#shownFacts = text;
    this.#facts.replaceChildren(
      ...facts.map(({ name, text: value, tone }) => {
        const row = document.createElement("div");
        const term = document.createElement("dt");
        const detail = document.createElement("dd");
        term.textContent = name;
        detail.textContent = value;
        detail.dataset["tone"] = tone;
        row.append(term, detail);
        return row;
      }),
    );
  }

  /** Draws the icon of the tab with a dot in the colour of the lamp. */
  #showIcon(tone: Tone): void {
    const colour = getComputedStyle(this.#probe).backgroundColor;
    if (`${tone} ${colour}` === this.#shownIcon) return;
    this.#shownIcon = `${tone} ${colour}`;
    const candles = `<path d="M5 6v20" stroke="#e5636f" stroke-width="7"/><path d="M15 3v20" stroke="#35b48c" stroke-width="7"/>`;
    const dot = `<circle cx="24" cy="24" r="8" fill="${colour}"/>`;
    const picture = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">${candles}${dot}</svg>`;
    this.#icon.href = `data:image/svg+xml,${encodeURIComponent(picture)}`;
  }
}
