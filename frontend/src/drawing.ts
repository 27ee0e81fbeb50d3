// The words of drawings: draw deltas, instructions and the catalogue of what can be shown, read tolerantly. What this
// page does not understand is passed over, one instruction at a time.

import { asFields, type Fields, numberOf, textOf } from "./json.ts";

/** A value at a candle; time in UTC seconds of its open. */
export interface Point {
  readonly time: number;
  readonly value: number;
  /** The next point is not that of the next candle: no line leads there. */
  readonly breaks?: boolean;
}

export interface Marker {
  readonly type: "marker";
  readonly feature: string;
  readonly time: number;
  readonly position: "aboveBar" | "belowBar";
  readonly color: string;
  readonly shape: "circle" | "arrowUp" | "arrowDown";
  readonly text: string;
  readonly size: number;
}

export interface Polyline {
  readonly type: "polyline";
  readonly feature: string;
  readonly points: readonly Point[];
  readonly color: string;
  readonly lineWidth: number;
  readonly lineStyle: "solid" | "dashed" | "dotted";
  /** The zone of which this is one edge; null for a line by itself. */
  readonly edge: Edge | null;
}

/** One of the two lines around a zone, which are told apart by the ends of their ids: `…:top` and `…:bottom`. */
export interface Edge {
  readonly zone: string;
  readonly side: "top" | "bottom";
}

export type Definition = Marker | Polyline;

export interface Instruction {
  readonly id: string;
  /** From when on it is known; null when that is not told. */
  readonly visibleTime: number | null;
  readonly definition: Definition;
}

/** Up to where a reader knows. */
export interface Cursor {
  readonly versionId: number;
  readonly pointTime: number;
}

export interface DrawDelta {
  readonly series: string | null;
  readonly epoch: number | null;
  /** The newest candle that the drawings know; null for a series without candles. */
  readonly to: number | null;
  readonly active: readonly string[];
  readonly patch: readonly Instruction[];
  readonly points: ReadonlyMap<string, readonly Point[]>;
  readonly cursor: Cursor;
}

export type Pane = "price" | "own";
export type LineLook = "line" | "dashed" | "histogram";

/** Something that can be shown or hidden: a feature of the drawings, or an output of an indicator. */
export interface Layer {
  readonly key: string;
  readonly label: string;
  readonly defaultVisible: boolean;
  readonly look: LineLook;
}

/** What belongs together: a factor. `pane` is where its values are drawn; null for what has none, or was not told. */
export interface LayerGroup {
  readonly key: string;
  readonly label: string;
  readonly pane: Pane | null;
  readonly layers: readonly Layer[];
}

/** The body of `GET /api/draw/delta`; null when it is something else. */
export function parseDrawDelta(body: unknown): DrawDelta | null {
  const fields = asFields(body);
  const cursor = asFields(fields?.["next_cursor"]);
  const active = fields?.["active_ids"];
  const patch = fields?.["instruction_catalog_patch"];
  const points = asFields(fields?.["series_points"]);
  if (fields === null || cursor === null || !Array.isArray(active) || !Array.isArray(patch)) return null;
  return {
    series: textOf(fields["series_id"]),
    epoch: numberOf(fields["epoch"]),
    to: numberOf(fields["to_candle_time"]),
    active: active.filter((id): id is string => typeof id === "string"),
    patch: patch.map(parseInstruction).filter((one) => one !== null),
    points: new Map(Object.entries(points ?? {}).map(([name, held]) => [name, parsePoints(held)])),
    cursor: { versionId: numberOf(cursor["version_id"]) ?? 0, pointTime: numberOf(cursor["point_time"]) ?? 0 },
  };
}

/** The body of `GET /api/factor/catalog`. */
export function parseCatalogue(body: unknown): LayerGroup[] {
  const factors = asFields(body)?.["factors"];
  if (!Array.isArray(factors)) return [];
  return factors.map(parseGroup).filter((group) => group !== null);
}

function parseGroup(value: unknown): LayerGroup | null {
  const fields = asFields(value);
  const key = textOf(fields?.["key"]);
  if (fields === null || key === null) return null;
  const label = textOf(fields["label"]) ?? key;
  const shown = fields["default_visible"] !== false;
  const subFeatures = fields["sub_features"];
  const layers = Array.isArray(subFeatures)
    ? subFeatures.map((one) => parseLayer(one, label, shown)).filter((layer) => layer !== null)
    : [];
  const itself: Layer = { key, label, defaultVisible: shown, look: lookOf(fields["style"]) };
  const pane = fields["pane"];
  return {
    key,
    label,
    pane: pane === "price" || pane === "own" ? pane : null,
    layers: layers.length > 0 ? layers : [itself],
  };
}

function parseLayer(value: unknown, group: string, groupShown: boolean): Layer | null {
  const fields = asFields(value);
  const key = textOf(fields?.["key"]);
  if (fields === null || key === null) return null;
  return {
    key,
    label: within(group, textOf(fields["label"]) ?? key),
    defaultVisible: groupShown && fields["default_visible"] !== false,
    look: lookOf(fields["style"]),
  };
}

/** What `BBANDS(20) upperband` is called beside its group, `BBANDS(20)`. */
function within(group: string, label: string): string {
  return label.startsWith(`${group} `) ? label.slice(group.length + 1) : label;
}

function lookOf(style: unknown): LineLook {
  return style === "histogram" || style === "dashed" ? style : "line";
}

function parseInstruction(value: unknown): Instruction | null {
  const fields = asFields(value);
  const id = textOf(fields?.["instruction_id"]);
  const definition = asFields(fields?.["definition"]);
  if (id === null || definition === null) return null;
  const parsed =
    definition["type"] === "marker"
      ? parseMarker(definition)
      : definition["type"] === "polyline"
        ? parsePolyline(definition, edgeOf(id))
        : null;
  return parsed === null ? null : { id, visibleTime: numberOf(fields?.["visible_time"]), definition: parsed };
}

function parseMarker(fields: Fields): Marker | null {
  const feature = textOf(fields["feature"]);
  const time = numberOf(fields["time"]);
  const color = textOf(fields["color"]);
  if (feature === null || time === null || color === null) return null;
  const shape = fields["shape"];
  return {
    type: "marker",
    feature,
    time,
    position: fields["position"] === "belowBar" ? "belowBar" : "aboveBar",
    color,
    shape: shape === "arrowUp" || shape === "arrowDown" ? shape : "circle",
    text: textOf(fields["text"]) ?? "",
    size: numberOf(fields["size"]) ?? 1,
  };
}

function edgeOf(id: string): Edge | null {
  const [, zone = "", side] = /^(.+):(top|bottom)$/u.exec(id) ?? [];
  return side === "top" || side === "bottom" ? { zone, side } : null;
}

function parsePolyline(fields: Fields, edge: Edge | null): Polyline | null {
  const feature = textOf(fields["feature"]);
  const color = textOf(fields["color"]);
  const points = parsePoints(fields["points"]);
  if (feature === null || color === null || points.length < 2) return null;
  const style = fields["lineStyle"];
  return {
    type: "polyline",
    feature,
    points,
    color,
    lineWidth: numberOf(fields["lineWidth"]) ?? 1,
    lineStyle: style === "dashed" || style === "dotted" ? style : "solid",
    edge,
  };
}

function parsePoints(value: unknown): Point[] {
  if (!Array.isArray(value)) return [];
  const points: Point[] = [];
  for (const one of value) {
    const fields = asFields(one);
    const time = numberOf(fields?.["time"]);
    const height = numberOf(fields?.["value"]);
    if (time !== null && height !== null) points.push({ time, value: height });
  }
  return points;
}
