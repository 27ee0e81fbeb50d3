// Keys: what the keyboard does on the chart and on the page.

/** Calls the action of a key pressed on `target`, without a modifier. */
export function onKeys(target: HTMLElement, actions: Readonly<Record<string, () => void>>): void {
  target.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]?.();
  });
}

/** Calls `open` for `/` and Ctrl+K (Command+K) anywhere on the page, unless `blocked`. */
export function onSearchKeys(open: () => void, blocked: () => boolean): void {
  document.addEventListener("keydown", (event) => {
    if (blocked()) return;
    const slash = event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey;
    const command = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey);
    if (!slash && !command) return;
    event.preventDefault();
    open();
  });
}
