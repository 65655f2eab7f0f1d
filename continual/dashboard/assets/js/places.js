// A value of each row at each of a few places (tasks, classes): dots beside each other, or lines where there is no room.

/** The nodes and remarks of such a chart. */
function placeChart(title, entries, width, options) {
  if (!entries.length) return { nodes: [] };
  const places = [...new Set(entries.flatMap(({ curve }) => curve.x))].sort((a, b) => a - b);
  const room = (width - 70) / (places.length || 1);
  if (room / (entries.length + 1) >= 2) return { nodes: [dotChart(title, entries, places, width, options)] };
  const lined = { ...options, tell: (value) => `${options.place} ${value}`, whole: true };
  return { nodes: [lineChart(title, entries, width, lined)], remarks: bandless(entries) };
}

function dotChart(title, entries, places, width, { unit, x, y, zero, within, place, height = 300 }) {
  const at = new Map(places.map((value, index) => [value, index]));
  const offset = (index) => (0.8 * (index - (entries.length - 1) / 2)) / entries.length;
  const apart = (0.8 * (width - 70)) / places.length / entries.length; // pixels from dot to dot
  const r = Math.min(4.5, Math.max(2, apart / 2 + 0.8));
  const all = entries.map(({ row, curve }, index) =>
    curvePoints(row, curve)
      .filter((point) => isNumber(point.y))
      .map((point) => ({ ...point, place: point.x, x: at.get(point.x) + offset(index) })),
  );
  const flat = all.flat();
  const means = entries.map(({ row, curve }) => ({ row, mean: average(curve.mean) }));
  return chart(`${title}: ${sentences(means, ({ mean }) => `${unit(mean)} on average`)}`, {
    width,
    height,
    marginRight: 16,
    marginBottom: 40,
    x: {
      label: x,
      domain: [-0.6, places.length - 0.4],
      ticks: places.map((_, i) => i),
      tickFormat: (i) => `${places[i]}`,
    },
    y: {
      label: y,
      domain: extent(flat, { zero, within }),
      grid: true,
      tickFormat: (v) => `${+(100 * v).toFixed(6)}`,
      ticks: 6,
    },
    marks: [
      zero ? Plot.ruleY([0], { stroke: "var(--axis)" }) : null,
      Plot.ruleX(
        places.slice(1).map((_, i) => i + 0.5),
        { stroke: "var(--grid)" },
      ),
      Plot.ruleX(
        flat.filter((p) => isNumber(p.low)),
        { x: "x", y1: "low", y2: "high", stroke: "colour", strokeWidth: r > 3 ? 1.6 : 1.1, clip: "frame" },
      ),
      all.map((own) => Plot.dot(own, { x: "x", y: "y", ...dotted(own[0]), r })),
      hover(flat, "x", "y", (point) => `${named(point.row, 40)}\n${place} ${point.place}\n${told(unit, point)}`),
    ],
  });
}

function average(values) {
  const seen = values.filter(isNumber);
  return seen.length ? seen.reduce((sum, value) => sum + value, 0) / seen.length : null;
}
