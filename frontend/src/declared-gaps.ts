// DeclaredGaps: what the service has said about missing spans, the newest word on each. Values, never changed.

import type { DeclaredGap, GapState } from "./wire.ts";

/** Spans kept beside those of holes that are shown; the ones that were declared first go first. */
export const MOST_DECLARED = 2000;
/** What is said of a hole whose parts are in different states: the first of these that one of them is in. */
const WORST_FIRST: readonly GapState[] = ["lost", "unknown", "healing", "confirmed_empty"];

export class DeclaredGaps {
  constructor(private readonly spans: readonly DeclaredGap[] = []) {}

  get count(): number {
    return this.spans.length;
  }

  /** These with one more, which counts where it overlaps older ones. */
  with(gap: DeclaredGap): DeclaredGaps {
    const overlaps = this.spans.some((span) => span.from < gap.to && span.to > gap.from);
    const older = overlaps ? this.spans.flatMap((span) => without(span, gap)) : this.spans;
    return new DeclaredGaps([...older, gap]);
  }

  /** No more than `MOST_DECLARED` of these, and those of the `holes` that are shown. */
  bounded(holes: readonly { readonly from: number; readonly to: number }[]): DeclaredGaps {
    const excess = this.spans.length - MOST_DECLARED;
    if (excess <= 0) return this;
    const shown = (span: DeclaredGap): boolean => holes.some((hole) => span.from < hole.to && span.to > hole.from);
    return new DeclaredGaps(this.spans.filter((span, index) => index >= excess || shown(span)));
  }

  /** The state of the hole from `from` up to `to`. A part that nothing was said of is `unknown`. */
  stateOf({ from, to }: { readonly from: number; readonly to: number }): GapState {
    const parts = this.spans.filter((span) => span.from < to && span.to > from);
    const covered = parts.reduce((sum, span) => sum + Math.min(span.to, to) - Math.max(span.from, from), 0);
    const states = new Set<GapState>(parts.map((span) => span.state));
    if (covered < to - from) states.add("unknown");
    return WORST_FIRST.find((state) => states.has(state)) ?? "unknown";
  }
}

/** The parts of `span` that `other` leaves: none, one or two. */
function without(span: DeclaredGap, other: DeclaredGap): DeclaredGap[] {
  if (other.to <= span.from || other.from >= span.to) return [span];
  const parts = [
    { ...span, to: other.from },
    { ...span, from: other.to },
  ];
  return parts.filter((part) => part.from < part.to);
}
