// Curves over the rows seen. Rows that were evaluated at other moments or on other rows are not drawn beside each other.

/** Of these rows those on the schedule in force, and a remark that names the others. */
function bySchedule({ scenario, schedule }, all, what = "Not drawn") {
  const others = all.filter((row) => row.schedule !== schedule);
  const told = others.map((row) => `${named(row)} (${scenario.schedules[row.schedule]})`);
  const remark = `${what}, as evaluated otherwise (here: ${scenario.schedules[schedule]}): ${told.join("; ")}.`;
  return { own: all.filter((row) => row.schedule === schedule), remarks: others.length ? [remark] : [] };
}

/** Of these rows those whose `names`, metrics drawn in one chart, may stand beside each other; a remark on the others. */
function byMetrics(scope, all, names) {
  const timed = scope.scenario.metrics.some(({ name, over_time: timed }) => timed && names.includes(name));
  return timed ? bySchedule(scope, all) : { own: all, remarks: [] };
}

/** Entries on the schedule in force, and a remark that names the others. */
function onSchedule(scope, name) {
  const able = scope.rows.filter((row) => hasCurve(row, name));
  const { own, remarks } = bySchedule(scope, able);
  return { entries: entriesOf(own, name), remarks };
}

function timePanel({ id, title, hint, curve = id, size = "full", options }) {
  return {
    id,
    title,
    hint,
    size,
    has: withCurve(curve),
    draw(scope, pick, width) {
      const { entries, remarks } = onSchedule(scope, curve);
      const table = () => curveTable(entries, options.column ?? "rows seen");
      if (!entries.length) return { nodes: [], table, remarks };
      const marks = options.bounded ? boundaries(entries, width) : [];
      const drawn = lineChart(title, entries, width, { ...options, marks });
      return { nodes: [drawn], table, remarks: [...remarks, ...bandless(entries)] };
    },
  };
}

const accuracyAxis = { unit: percent, x: "rows seen", y: "accuracy (%)", within: [0, 1], bounded: true };

const anytimePanel = timePanel({
  id: "anytime",
  title: "Anytime accuracy",
  hint: "Mean accuracy on all tasks seen so far; band: 95% interval over seeds; dotted: a task ends.",
  options: accuracyAxis,
});

const gapPanel = timePanel({
  id: "gap",
  title: "Stability gap",
  hint: "Accuracy on old tasks minus that just before the switch, mean over switches.",
  size: "half",
  options: {
    ...changeAxis,
    x: "rows since the switch",
    y: "change (points)",
    column: "rows since the switch",
  },
});

const newestPanel = timePanel({
  id: "newest",
  title: "Accuracy on the newest task",
  hint: "Plasticity: how fast and how far the task in training is learned.",
  size: "half",
  options: accuracyAxis,
});
