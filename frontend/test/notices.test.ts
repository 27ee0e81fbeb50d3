import { describe, expect, test } from "vitest";
import { freshAt, type Notices, STALE_AFTER_MS, staleAt, STATELESS_MS, textOfNotices, withBackfill, withEvent } from "../src/notices.ts";

const NONE: Notices = [];
const BACKFILL = "backfill.progress";
const REBUILD = "factor.rebuild";

describe("a notice of work", () => {
  test("shows the newest sentence while the work runs", () => {
    const first = withEvent(NONE, BACKFILL, "40 %", "running", 0);
    expect(textOfNotices(first)).toBe("40 %");
    expect(textOfNotices(withEvent(first, BACKFILL, "50 %", "running", 1000))).toBe("50 %");
  });

  test.each(["succeeded", "done"])("ends when the work is %s", (state) => {
    for (const event of [BACKFILL, REBUILD]) {
      const running = withEvent(NONE, event, "40 %", "running", 0);
      expect(withEvent(running, event, "rebuilt: up to date", state, 1)).toEqual([]);
    }
  });

  test("is shown beside those of other work, and each ends on its own", () => {
    const both = withEvent(withEvent(NONE, BACKFILL, "history", "running", 0), REBUILD, "factors", "running", 0);
    expect(textOfNotices(both)).toBe("history · factors");
    expect(textOfNotices(withEvent(both, BACKFILL, "", "succeeded", 1))).toBe("factors");
  });

  test("ends when the health of the series reports no backfill", () => {
    const both = withEvent(withEvent(NONE, BACKFILL, "history", "running", 0), REBUILD, "factors", "running", 0);
    expect(withBackfill(both, "running")).toBe(both);
    expect(withBackfill(both, null)).toBe(both);
    expect(textOfNotices(withBackfill(both, "idle"))).toBe("factors");
    const failed = withEvent(NONE, BACKFILL, "history cannot be fetched", "failed", 0);
    expect(withBackfill(failed, "failed")).toBe(failed);
    expect(withBackfill(failed, "succeeded")).toEqual([]);
  });

  test("ends when it becomes stale", () => {
    const running = withEvent(NONE, REBUILD, "factors", "running", 5);
    expect(staleAt(running)).toBe(5 + STALE_AFTER_MS);
    expect(freshAt(running, 4 + STALE_AFTER_MS)).toBe(running);
    expect(freshAt(running, 5 + STALE_AFTER_MS)).toEqual([]);
    expect(staleAt(NONE)).toBeNull();
  });

  test("of an event without a state is shown for a short time", () => {
    const stateless = withEvent(NONE, REBUILD, "factors are rebuilt: up to date", null, 0);
    expect(textOfNotices(stateless)).toContain("up to date");
    expect(staleAt(stateless)).toBe(STATELESS_MS);
    expect(freshAt(stateless, STATELESS_MS)).toEqual([]);
  });
});
