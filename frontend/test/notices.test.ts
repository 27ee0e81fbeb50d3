import { describe, expect, test } from "vitest";
import { backfillIs, heardOf, type Notices, PASSING_MS, SILENT_AFTER_MS, silentAt, textOfNotices, told } from "../src/notices.ts";

const NONE: Notices = [];
const READ = "backfill.progress";
const REBUILT = "factor.rebuild";

describe("a notice of work", () => {
  test("is there while the work runs, with its newest sentence", () => {
    const once = told(NONE, READ, "40 %", "running", 0);
    expect(textOfNotices(once)).toBe("40 %");
    expect(textOfNotices(told(once, READ, "50 %", "running", 1000))).toBe("50 %");
  });

  test.each(["succeeded", "done"])("ends when the work has %s", (state) => {
    for (const event of [READ, REBUILT]) {
      const running = told(NONE, event, "40 %", "running", 0);
      expect(told(running, event, "computed anew: up to date", state, 1)).toEqual([]);
    }
  });

  test("stands beside that of other work, and they end each by itself", () => {
    const both = told(told(NONE, READ, "history", "running", 0), REBUILT, "factors", "running", 0);
    expect(textOfNotices(both)).toBe("history · factors");
    expect(textOfNotices(told(both, READ, "", "succeeded", 1))).toBe("factors");
  });

  test("ends when the health of the series says that nothing is read", () => {
    const both = told(told(NONE, READ, "history", "running", 0), REBUILT, "factors", "running", 0);
    expect(backfillIs(both, "running")).toBe(both);
    expect(backfillIs(both, null)).toBe(both);
    expect(textOfNotices(backfillIs(both, "idle"))).toBe("factors");
    const failed = told(NONE, READ, "history cannot be read", "failed", 0);
    expect(backfillIs(failed, "failed")).toBe(failed);
    expect(backfillIs(failed, "succeeded")).toEqual([]);
  });

  test("ends when nothing was heard of the work for a while", () => {
    const running = told(NONE, REBUILT, "factors", "running", 5);
    expect(silentAt(running)).toBe(5 + SILENT_AFTER_MS);
    expect(heardOf(running, 4 + SILENT_AFTER_MS)).toBe(running);
    expect(heardOf(running, 5 + SILENT_AFTER_MS)).toEqual([]);
    expect(silentAt(NONE)).toBeNull();
  });

  test("without a state of its own passes", () => {
    const passing = told(NONE, REBUILT, "factors are computed anew: up to date", null, 0);
    expect(textOfNotices(passing)).toContain("up to date");
    expect(silentAt(passing)).toBe(PASSING_MS);
    expect(heardOf(passing, PASSING_MS)).toEqual([]);
  });
});
