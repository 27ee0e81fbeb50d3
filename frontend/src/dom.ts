/** The element of that id. Throws when index.html has none of that type. */
export function element<T extends Element>(id: string, type: new () => T): T {
  const match = document.getElementById(id);
  if (match instanceof type) return match;
  throw new Error(`index.html has no ${type.name} with id ${id}`);
}

/** Sets the text of an element, unless it has that text already: an assignment alone makes the browser work. */
export function setText(target: HTMLElement, text: string): void {
  if (target.textContent !== text) target.textContent = text;
}

/** Shows `text` in an element; null: hides the element. */
export function showText(target: HTMLElement, text: string | null): void {
  target.hidden = text === null;
  if (text !== null) setText(target, text);
}
