// Header: the shown series and its timeframes, at the top of the page.

import { element, setText } from "./dom.ts";
import { exchangeName, marketName } from "./format.ts";
import type { Series } from "./series.ts";

export class Header {
  readonly #choose = element("choose", HTMLButtonElement);
  readonly #symbol = element("choose-symbol", HTMLSpanElement);
  readonly #timeframe = element("choose-timeframe", HTMLSpanElement);
  readonly #tags = element("choose-tags", HTMLSpanElement);
  readonly #timeframes = element("timeframes", HTMLDivElement);

  /** `choose`: the reader chose another timeframe. */
  constructor(private readonly choose: (series: Series) => void) {}

  /** `siblings`: the symbol in each of its timeframes, `series` among them. */
  show(series: Series | null, siblings: readonly Series[]): void {
    const choice = siblings.length > 1;
    setText(this.#symbol, series?.symbol ?? "Choose a series");
    setText(this.#tags, series === null ? "" : `${marketName(series.market)} · ${exchangeName(series.exchange)}`);
    setText(this.#timeframe, series?.timeframe ?? "");
    this.#timeframe.hidden = choice;
    this.#timeframes.hidden = !choice;
    if (series === null) this.#choose.removeAttribute("aria-label");
    else this.#choose.setAttribute("aria-label", `${series.id}. Choose another series`);
    this.#timeframes.replaceChildren(...siblings.map((sibling) => this.#button(sibling, sibling.id === series?.id)));
    this.#timeframes.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #button(sibling: Series, pressed: boolean): HTMLButtonElement {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = sibling.timeframe;
    button.setAttribute("aria-pressed", String(pressed));
    button.addEventListener("click", () => this.choose(sibling));
    return button;
  }
}
