// Reads JSON of a known shape, one value at a time. Types of values are checked at run time, names at compile time: a name
// that the service does not send is a compile error.

/** Every name that a member of the union `T` has. */
type NameOf<T> = T extends unknown ? keyof T & string : never;

/** The members of a JSON object that should be a `T`: each may be missing, or have another type. */
export type Fields<T> = { readonly [Name in NameOf<T>]?: unknown };

/** The members of a JSON object; null for anything else. */
export function asFields<T>(value: unknown): Fields<T> | null {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Fields<T>) : null;
}

/** A text; null for anything else. */
export function textOf(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/** A finite number; null for anything else. */
export function numberOf(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** The value, if it is a key of `table`; null for anything else. */
export function keyOf<Key extends string>(table: Readonly<Record<Key, unknown>>, value: unknown): Key | null {
  return typeof value === "string" && Object.hasOwn(table, value) ? (value as Key) : null;
}

/** The items of a JSON array that `parse` understands; none for anything else. */
export function listOf<Item>(value: unknown, parse: (item: unknown) => Item | null): Item[] {
  return Array.isArray(value) ? value.map(parse).filter((item) => item !== null) : [];
}
