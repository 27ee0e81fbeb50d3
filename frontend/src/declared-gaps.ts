// DeclaredGaps: the newest state that the service has declared for each span of missing candles. An immutable value.

import type { DeclaredGap, GapState } from "./wire.ts";

/** Most declared spans, beside those of shown gaps; the earliest declarations are dropped first. */
export const MAX_DECLARED = 2000;
/** A gap whose parts have different states has the first of these. */
const WORST_FIRST: readonly GapState[] = ["lost", "unknown", "healing", "confirmed_empty"];

export class DeclaredGaps {
  constructor(private readonly spans: readonly DeclaredGap[] = []) {}

  get count(): number {
    return this.spans.length;
  }

  /** These and `gap`, which overrides the spans that it overlaps. */
  with(gap: DeclaredGap): DeclaredGaps {
    const overlaps = this.spans.some((span) => span.from < gap.to && span.to > gap.from);
    const older = overlaps ? this.spans.flatMap((span) => without(span, gap)) : this.spans;
    return new DeclaredGaps([...older, gap]);
  }

  /** The newest `MAX_DECLARED` of these, and all that overlap `missing`. */
  bounded(missing: readonly { readonly from: number; readonly to: number }[]): DeclaredGaps {
    const excess = this.spans.length - MAX_DECLARED;
    if (excess <= 0) return this;
    const needed = (span: DeclaredGap): boolean => missing.some(({ from, to }) => span.from < to && span.to > from);
    return new DeclaredGaps(this.spans.filter((span, index) => index >= excess || needed(span)));
  }

  /** The state of the gap from `from` (inclusive) to `to` (exclusive). An undeclared part is `unknown`. */
  stateOf({ from, to }: { readonly from: number; readonly to: number }): GapState {
    const parts = this.spans.filter((span) => span.from < to && span.to > from);
    const covered = parts.reduce((sum, span) => sum + Math.min(span.to, to) - Math.max(span.from, from), 0);
    const states = new Set<GapState>(parts.map((span) => span.state));
    if (covered < to - from) states.add("unknown");
    return WORST_FIRST.find((state) => states.has(state)) ?? "unknown";
  }
}

/** The parts of `span` outside of `other`: none, one or two. */
function without(span: DeclaredGap, other: DeclaredGap): DeclaredGap[] {
  if (other.to <= span.from || other.from >= span.to) return [span];
  const parts = [
    { ...span, to: other.from },
    { ...span, from: other.to },
  ];
  return parts.filter((part) => part.from < part.to);
}
