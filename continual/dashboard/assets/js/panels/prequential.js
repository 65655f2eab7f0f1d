// Predict first, then learn: accuracy on arriving rows, beside two learners that look at no input.

const REFERENCES = [
  ["last_label", "last label", "6 3"],
  ["blind", "labels only", "1 3"],
];

const prequentialPanel = {
  id: "prequential",
  title: "Prequential accuracy",
  hint: "Each row is predicted before it is learned. Grey: two learners that look at no input; “last label” repeats it, “labels only” predicts from the labels before.",
  size: "full",
  has: withCurve("prequential"),
  draw(scope, pick, width) {
    const { entries, remarks } = onSchedule(scope, "prequential");
    const references = REFERENCES.flatMap(([name, title, dash]) => distinct(entries, name, title, dash));
    const table = () => curveTable([...entries, ...references.map(referenceEntry)], "rows seen");
    if (!entries.length) return { nodes: [], table, remarks };
    const marks = [...boundaries(entries, width), ...references.map(referenceLine)];
    const over = (apart) => referenceNames(references, apart);
    const beside = references.map(({ curve }) => curve);
    const drawn = lineChart(this.title, entries, width, { ...accuracyAxis, marks, beside, over });
    return { nodes: [drawn], table, remarks: [...remarks, ...bandless(entries)] };
  },
};

/** The curve of a reference once, however many rows share it. */
function distinct(entries, name, title, dash) {
  const found = new Map(entries.filter(({ row }) => row[name]).map(({ row }) => [JSON.stringify(row[name].mean), row]));
  return [...found.values()].map((row) => ({
    curve: row[name],
    dash,
    title: found.size > 1 ? `${title}, as ${named(row)} saw it` : title,
  }));
}

function referenceEntry({ title, curve }) {
  return { row: { label: title, colour: 0 }, curve };
}

/** A line; one window is a dot. */
function referenceLine({ curve, dash }) {
  const place = { x: curve.x, y: curve.mean };
  return curve.mean.filter(isNumber).length === 1
    ? Plot.dot(curve.x, { ...place, fill: "var(--soft)", r: 3 })
    : Plot.line(curve.x, { ...place, stroke: "var(--soft)", strokeWidth: 1.5, strokeDasharray: dash });
}

function referenceNames(references, apart) {
  const ends = references
    .map(({ title, curve }) => ({ title, curve, last: curve.mean.findLastIndex(isNumber) }))
    .filter(({ last }) => last >= 0);
  const places = apart(ends.map(({ curve, last }) => curve.mean[last]));
  return ends.map(({ title, curve, last }, at) =>
    Plot.text([title], {
      x: [curve.x[last]],
      y: [places[at]],
      fill: "var(--soft)",
      textAnchor: "end",
      dy: -8,
      dx: -6,
      ...HALO,
    }),
  );
}
