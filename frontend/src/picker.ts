// Picker: the dialog in which the reader chooses a series. A combobox over a list box, usable with the keyboard alone.

import { element } from "./dom.ts";
import { exchangeName, marketName } from "./format.ts";
import { type Offer, offersFor } from "./search.ts";
import type { Series } from "./series.ts";

export class Picker {
  readonly #dialog = element("picker", HTMLDialogElement);
  readonly #input = element("picker-input", HTMLInputElement);
  readonly #list = element("picker-list", HTMLUListElement);
  readonly #hint = element("picker-hint", HTMLParagraphElement);

  #whitelist: readonly Series[] = [];
  #current: Series | null = null;
  #offers: readonly Offer[] = [];
  #active = 0;

  constructor(private readonly chosen: (series: Series) => void) {
    this.#input.addEventListener("input", () => {
      this.#active = 0;
      this.#render();
    });
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    // The list gets no pointerdown, so that the input keeps the focus.
    this.#list.addEventListener("pointerdown", (event) => event.preventDefault());
    this.#list.addEventListener("click", (event) => {
      const row = event.target instanceof Element ? event.target.closest("li") : null;
      if (row !== null) this.#take(Number(row.dataset["index"]));
    });
    this.#dialog.addEventListener("click", (event) => {
      // The dialog itself is hit only outside its content: on the backdrop.
      if (event.target === this.#dialog) this.#dialog.close();
    });
    element("picker-close", HTMLButtonElement).addEventListener("click", () => this.#dialog.close());
  }

  get isOpen(): boolean {
    return this.#dialog.open;
  }

  open(current: Series | null): void {
    if (this.#dialog.open) return;
    this.#current = current;
    this.#input.value = "";
    this.#offers = [];
    this.#render();
    this.#active = Math.max(0, this.#offers.findIndex((offer) => offer.series.id === current?.id));
    this.#dialog.showModal();
    this.#input.focus();
    this.#mark();
  }

  /** Takes the service's series, also while the dialog is open. */
  setWhitelist(whitelist: readonly Series[]): void {
    this.#whitelist = whitelist;
    if (this.#dialog.open) this.#render();
  }

  #key(event: KeyboardEvent): void {
    const last = this.#offers.length - 1;
    const moves: Readonly<Record<string, number>> = {
      ArrowDown: this.#active >= last ? 0 : this.#active + 1,
      ArrowUp: this.#active <= 0 ? last : this.#active - 1,
      PageDown: Math.min(last, this.#active + 8),
      PageUp: Math.max(0, this.#active - 8),
    };
    const target = moves[event.key];
    if (target !== undefined) {
      event.preventDefault();
      this.#active = target;
      this.#mark();
    } else if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      this.#take(this.#active);
    }
  }

  #take(index: number): void {
    const offer = this.#offers[index];
    if (offer === undefined) return;
    this.#dialog.close();
    this.chosen(offer.series);
  }

  #render(): void {
    const text = this.#input.value;
    this.#offers = offersFor(text, this.#whitelist, this.#current?.timeframe ?? "1m");
    this.#active = Math.min(this.#active, Math.max(0, this.#offers.length - 1));
    this.#list.replaceChildren(...this.#offers.map((offer, index) => this.#row(offer, index)));
    this.#hint.textContent = this.#hintFor(text.trim());
    this.#mark();
  }

  #hintFor(text: string): string {
    if (this.#offers.some((offer) => !offer.whitelisted)) return "Of a series that is not followed, the page shows the stored candles.";
    if (this.#offers.length > 0) return "";
    if (text === "") return "The service's whitelist is empty. Type a symbol such as SOL/USDT to see its stored candles.";
    return `Nothing matches “${text}”. A series id reads exchange:market:BASE/QUOTE:timeframe, for example binance:spot:SOL/USDT:1m.`;
  }

  #row({ series, whitelisted }: Offer, index: number): HTMLLIElement {
    const row = document.createElement("li");
    row.id = `offer-${index}`;
    row.dataset["index"] = String(index);
    row.dataset["series"] = series.id;
    row.setAttribute("role", "option");
    const [base = "", ...rest] = series.symbol.split("/");
    row.append(
      part("offer-symbol", [part("offer-base", base), `/${rest.join("/")}`]),
      part("offer-tag", series.id === this.#current?.id ? "shown" : whitelisted ? "" : "not followed"),
      part("offer-where", `${marketName(series.market)} · ${exchangeName(series.exchange)}`),
      part("offer-timeframe", series.timeframe),
    );
    return row;
  }

  #mark(): void {
    for (const [index, row] of [...this.#list.children].entries()) {
      row.setAttribute("aria-selected", String(index === this.#active));
      if (index === this.#active) row.scrollIntoView({ block: "nearest" });
    }
    if (this.#offers.length > 0) this.#input.setAttribute("aria-activedescendant", `offer-${this.#active}`);
    else this.#input.removeAttribute("aria-activedescendant");
  }
}

function part(className: string, content: string | readonly (string | Node)[]): HTMLSpanElement {
  const span = document.createElement("span");
  span.className = className;
  span.append(...(typeof content === "string" ? [content] : content));
  return span;
}
