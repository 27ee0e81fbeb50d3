// What the rule module-state allows and what it reports, for test/lint.test.js. Nothing imports this file.

export const NUMBER = 1;
export const TABLE: Readonly<Record<string, number>> = {};
export const LIST: readonly number[] = [];
export const LITERAL = { kind: "none" } as const;
export const SET: ReadonlySet<string> = new Set();
export class Allowed {
  static readonly limit = 1;
  count = 0;
}

export let reportedVariable = 1;
export const reportedMap = new Map<string, number>();
export const reportedList: number[] = [];
export const reportedTable = { count: 0 };
export class Reported {
  static count = 0;
}
