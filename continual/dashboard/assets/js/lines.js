// Curves of several rows: a line each with its interval as a band, symbols along it, its name at its end.

const LABEL = 13; // pixels between two names at the ends of lines
const BANDS = 12; // rows; the bands of more cover each other and the lines

/** What is said of a chart of lines that has no bands. */
function bandless(entries) {
  const told = `Without bands, as those of more than ${BANDS} rows cover each other: hover to read the intervals, or switch rows off above.`;
  return entries.length > BANDS ? [told] : [];
}

/**
 * @param entries [{row, curve}]
 * @param options.unit how a value is written
 * @param options.marks further marks, drawn below the lines; `beside`: curves among them, for the range
 * @param options.over marks above the lines, from a function that pushes values apart so that names can be read
 * @param options.whole x counts something: ticks at whole numbers only
 */
function lineChart(title, entries, width, options) {
  const { unit, x, y, zero, within, marks = [], over = () => [], beside = [], height = 300, whole } = options;
  const { tell = (value) => `${x} ${rows(value)}` } = options;
  const all = entries.map(({ row, curve }) => curvePoints(row, curve));
  const flat = all.flat().filter((point) => isNumber(point.y));
  const banded = entries.length > BANDS ? [] : flat.filter((point) => isNumber(point.low));
  const ranged = banded.length ? flat : flat.map(({ y }) => ({ y }));
  const domain = extent([...ranged, ...beside.flatMap((curve) => curve.mean.map((mean) => ({ y: mean })))], {
    zero,
    within,
  });
  const marginTop = marks.length ? 38 : 26;
  const inside = height - marginTop - 40;
  const apart = (values) => spaced(values, (LABEL * (domain[1] - domain[0])) / inside, domain[0]);
  const wide = width > 520 && (entries.length + 1) * LABEL < inside;
  const ends = all.map((own) => own.findLast((point) => isNumber(point.y))).filter(Boolean);
  const last = sentences(
    ends.map((end) => ({ row: end.row, end })),
    ({ end }) => `${unit(end.y)} at the end`,
  );
  return chart(`${title}: ${last}`, {
    width,
    height,
    marginTop,
    marginRight: wide ? 130 : 16,
    marginBottom: 40,
    x: {
      label: x,
      ...(whole ? wholeTicks(flat, width) : { tickFormat: thousands, ticks: Math.max(2, Math.floor(width / 90)) }),
    },
    y: { label: y, domain, grid: true, tickFormat: (value) => `${+(100 * value).toFixed(6)}`, ticks: 6 },
    marks: [
      ...marks,
      zero ? Plot.ruleY([0], { stroke: "var(--axis)" }) : null,
      Plot.areaY(banded, {
        x: "x",
        y1: "low",
        y2: "high",
        z: (point) => point.row.label,
        fill: "colour",
        fillOpacity: 0.16,
        clip: "frame",
      }),
      all.map((own) => Plot.line(own, line(own[0]))),
      all.map((own) => Plot.dot(spots(own), { x: "x", y: "y", ...dotted(own[0]) })),
      wide ? endNames(ends, apart) : null,
      ...over(apart),
      hover(flat, "x", "y", (point) => `${named(point.row, 40)}\n${tell(point.x)}\n${told(unit, point)}`),
    ],
  });
}

function wholeTicks(flat, width) {
  const values = [...new Set(flat.map((point) => point.x))].sort((a, b) => a - b);
  const step = Math.ceil(values.length / Math.max(2, Math.floor(width / 34)));
  return { ticks: values.filter((_, at) => at % step === 0), tickFormat: (value) => `${value}` };
}

function line(point) {
  return point ? { x: "x", y: "y", stroke: point.colour, strokeWidth: 1.8, strokeDasharray: look(point.row).dash } : {};
}

function dotted(point) {
  return point
    ? { symbol: look(point.row).symbol, fill: point.colour, r: 4, stroke: "var(--card)", strokeWidth: 0.7 }
    : {};
}

/** About six points along a curve, at other places than those of the next row; all of a short curve. */
function spots(own) {
  const seen = own.filter((point) => isNumber(point.y));
  if (seen.length <= 15) return seen;
  const step = Math.ceil(seen.length / 6);
  const first = Math.floor(((seen[0].row.colour % COLOURS) / COLOURS) * step);
  return seen.filter((_, at) => at % step === first);
}

function endNames(ends, apart) {
  const places = apart(ends.map((end) => end.y));
  const right = Math.max(...ends.map((end) => end.x));
  return ends.map((end, at) =>
    Plot.text([end], {
      x: right,
      y: places[at],
      text: () => named(end.row, 14),
      fill: look(end.row).text,
      textAnchor: "start",
      dx: 8,
      ...HALO,
    }),
  );
}

/** Vertical lines where a task ended in the row that got furthest, and between them the name of the task in training. */
function boundaries(entries, width) {
  const row = entries.map((entry) => entry.row).reduce((a, b) => (b.switches.length > a.switches.length ? b : a));
  if (!row.switches.length) return [];
  const starts = [0, ...row.switches.slice(0, -1)];
  const names = row.switches.map((end, at) => ({ x: (starts[at] + end) / 2, text: `task ${row.trained[at]}` }));
  const room = width / row.switches.length;
  return [
    Plot.ruleX([0, ...row.switches], { stroke: "var(--axis)", strokeDasharray: "2 3", strokeOpacity: 0.8 }),
    room > 24
      ? Plot.text(names, {
          x: "x",
          text: room > 56 ? "text" : (d) => d.text.slice(5),
          frameAnchor: "top",
          dy: -13,
          fill: "var(--soft)",
        })
      : null,
  ];
}

/** The tidy table of curves: one line per point. */
function curveTable(entries, x) {
  const lines = entries.flatMap(({ row, curve }) =>
    curve.x.map((at, i) => [row.label, at, curve.mean[i], curve.low[i], curve.high[i], curve.n[i]]),
  );
  return { header: ["row", x, "mean", "low", "high", "n"], lines };
}
