// Drawings as data: draw deltas, instructions and the catalogue of layers, parsed tolerantly. An instruction that this
// page does not understand is skipped; the others are drawn.

import { asFields, type Fields, keyOf, listOf, numberOf, textOf } from "./json.ts";
import type {
  CursorAnswer,
  DrawDeltaAnswer,
  FactorAnswer,
  FactorCatalogAnswer,
  FeatureAnswer,
  InstructionAnswer,
  MarkerAnswer,
  PointAnswer,
  PolylineAnswer,
} from "./messages.ts";

/** A value at a candle. `time`: the candle's open time. */
export interface Point {
  readonly time: number;
  readonly value: number;
  /** The next point does not belong to the next candle: no line is drawn to it. */
  readonly breaks?: boolean;
}

export interface Marker {
  readonly type: "marker";
  readonly feature: string;
  readonly time: number;
  readonly position: MarkerAnswer["position"];
  readonly color: string;
  readonly shape: MarkerAnswer["shape"];
  readonly text: string;
  readonly size: number;
}

type LineStyle = NonNullable<PolylineAnswer["lineStyle"]>;

export interface Polyline {
  readonly type: "polyline";
  readonly feature: string;
  readonly points: readonly Point[];
  readonly color: string;
  readonly lineWidth: number;
  readonly lineStyle: LineStyle;
  /** The zone that this line is an edge of; null for a line of its own. */
  readonly edge: Edge | null;
}

/** One of the two lines around a zone. Their instruction ids end with `:top` and `:bottom`. */
export interface Edge {
  readonly zone: string;
  readonly side: "top" | "bottom";
}

export type Definition = Marker | Polyline;

export interface Instruction {
  readonly id: string;
  /** Open time of the candle at which the drawing became known; null when the service does not say. */
  readonly visibleTime: number | null;
  readonly definition: Definition;
}

/** Position of a reader in the ledger: the newest drawing and the newest point received. */
export interface Cursor {
  readonly versionId: number;
  readonly pointTime: number;
}

export interface DrawDelta {
  readonly series: string | null;
  readonly epoch: number | null;
  /** Open time of the newest candle that the drawings cover; null for a series without candles. */
  readonly to: number | null;
  readonly active: readonly string[];
  readonly patch: readonly Instruction[];
  readonly points: ReadonlyMap<string, readonly Point[]>;
  readonly cursor: Cursor;
}

export type Pane = NonNullable<FactorAnswer["pane"]>;
export type LineLook = NonNullable<FeatureAnswer["style"]>;

/** Something that the reader can show or hide: a feature of the drawings, or an output of an indicator. */
export interface Layer {
  readonly key: string;
  readonly label: string;
  readonly defaultVisible: boolean;
  readonly look: LineLook;
}

/** The layers of one factor. `pane`: where the values of an indicator are drawn; null for a factor without values. */
export interface LayerGroup {
  readonly key: string;
  readonly label: string;
  readonly pane: Pane | null;
  readonly layers: readonly Layer[];
}

const POSITIONS: Readonly<Record<Marker["position"], true>> = { aboveBar: true, belowBar: true };
const SHAPES: Readonly<Record<Marker["shape"], true>> = { circle: true, arrowUp: true, arrowDown: true };
const LINE_STYLES: Readonly<Record<LineStyle, true>> = { solid: true, dashed: true, dotted: true };
const LOOKS: Readonly<Record<LineLook, true>> = { line: true, dashed: true, histogram: true };
const PANES: Readonly<Record<Pane, true>> = { price: true, own: true };

/** The body of `GET /api/draw/delta`; null for anything else. */
export function parseDrawDelta(body: unknown): DrawDelta | null {
  const fields = asFields<DrawDeltaAnswer>(body);
  const cursor = asFields<CursorAnswer>(fields?.next_cursor);
  const active = fields?.active_ids;
  const patch = fields?.instruction_catalog_patch;
  if (fields === null || cursor === null || !Array.isArray(active) || !Array.isArray(patch)) return null;
  const points = asFields<Record<string, unknown>>(fields.series_points) ?? {};
  return {
    series: textOf(fields.series_id),
    epoch: numberOf(fields.epoch),
    to: numberOf(fields.to_candle_time),
    active: listOf(active, textOf),
    patch: listOf(patch, parseInstruction),
    points: new Map(Object.entries(points).map(([name, values]) => [name, listOf(values, parsePoint)])),
    cursor: { versionId: numberOf(cursor.version_id) ?? 0, pointTime: numberOf(cursor.point_time) ?? 0 },
  };
}

/** The body of `GET /api/factor/catalog`. */
export function parseCatalogue(body: unknown): LayerGroup[] {
  return listOf(asFields<FactorCatalogAnswer>(body)?.factors, parseGroup);
}

function parseGroup(value: unknown): LayerGroup | null {
  const fields = asFields<FactorAnswer>(value);
  const key = textOf(fields?.key);
  if (fields === null || key === null) return null;
  const label = textOf(fields.label) ?? key;
  const defaultVisible = fields.default_visible !== false;
  const layers = listOf(fields.sub_features, (feature) => parseLayer(feature, label, defaultVisible));
  const ownLayer: Layer = { key, label, defaultVisible, look: "line" };
  return { key, label, pane: keyOf(PANES, fields.pane), layers: layers.length > 0 ? layers : [ownLayer] };
}

function parseLayer(value: unknown, group: string, groupVisible: boolean): Layer | null {
  const fields = asFields<FeatureAnswer>(value);
  const key = textOf(fields?.key);
  if (fields === null || key === null) return null;
  return {
    key,
    label: labelWithin(group, textOf(fields.label) ?? key),
    defaultVisible: groupVisible && fields.default_visible !== false,
    look: lookOf(fields.style),
  };
}

/** `upperband` for `BBANDS(20) upperband` in the group `BBANDS(20)`. */
function labelWithin(group: string, label: string): string {
  return label.startsWith(`${group} `) ? label.slice(group.length + 1) : label;
}

function lookOf(style: unknown): LineLook {
  return keyOf(LOOKS, style) ?? "line";
}

function parseInstruction(value: unknown): Instruction | null {
  const fields = asFields<InstructionAnswer>(value);
  const id = textOf(fields?.instruction_id);
  const definition = asFields<InstructionAnswer["definition"]>(fields?.definition);
  if (id === null || definition === null) return null;
  const parsed =
    definition.type === "marker"
      ? parseMarker(definition)
      : definition.type === "polyline"
        ? parsePolyline(definition, edgeOf(id))
        : null;
  return parsed === null ? null : { id, visibleTime: numberOf(fields?.visible_time), definition: parsed };
}

function parseMarker(fields: Fields<MarkerAnswer>): Marker | null {
  const feature = textOf(fields.feature);
  const time = numberOf(fields.time);
  const color = textOf(fields.color);
  if (feature === null || time === null || color === null) return null;
  return {
    type: "marker",
    feature,
    time,
    position: keyOf(POSITIONS, fields.position) ?? "aboveBar",
    color,
    shape: keyOf(SHAPES, fields.shape) ?? "circle",
    text: textOf(fields.text) ?? "",
    size: numberOf(fields.size) ?? 1,
  };
}

function edgeOf(id: string): Edge | null {
  const [, zone = "", side] = /^(.+):(top|bottom)$/u.exec(id) ?? [];
  return side === "top" || side === "bottom" ? { zone, side } : null;
}

function parsePolyline(fields: Fields<PolylineAnswer>, edge: Edge | null): Polyline | null {
  const feature = textOf(fields.feature);
  const color = textOf(fields.color);
  const points = listOf(fields.points, parsePoint);
  if (feature === null || color === null || points.length < 2) return null;
  return {
    type: "polyline",
    feature,
    points,
    color,
    lineWidth: numberOf(fields.lineWidth) ?? 1,
    lineStyle: keyOf(LINE_STYLES, fields.lineStyle) ?? "solid",
    edge,
  };
}

function parsePoint(value: unknown): Point | null {
  const fields = asFields<PointAnswer>(value);
  const time = numberOf(fields?.time);
  const number = numberOf(fields?.value);
  return time === null || number === null ? null : { time, value: number };
}
