// Which tasks were forgotten, and which tasks did the damage.

const hasCurve = (row, name) => Boolean(row[name]?.mean.some(isNumber));
const withCurve = (name) => (scenario) => scenario.rows.some((row) => hasCurve(row, name));
const entriesOf = (shown, name) => shown.filter((row) => hasCurve(row, name)).map((row) => ({ row, curve: row[name] }));

const changeAxis = { unit: points, zero: true, within: [-1, 1] }; // an interval of few seeds may reach far beyond

const forgettingPanel = {
  id: "forgetting",
  title: "Forgetting per task",
  hint: "Best accuracy at an end of a task before the last, minus the accuracy at the last end; bars or bands: 95% interval over seeds.",
  size: "half",
  has: withCurve("forgetting"),
  draw({ rows: shown }, pick, width) {
    const entries = entriesOf(shown, "forgetting");
    const options = { ...changeAxis, x: "task", y: "forgetting (points)", place: "task", height: 290 };
    return { ...placeChart(this.title, entries, width, options), table: () => curveTable(entries, "task") };
  },
};

const damagePanel = {
  id: "damage",
  title: "Damage done by each task",
  hint: "Mean change of accuracy on all tasks learned before, while the k-th task was trained.",
  size: "half",
  has: withCurve("damage"),
  draw({ rows: shown }, pick, width) {
    const entries = entriesOf(shown, "damage");
    const options = {
      ...changeAxis,
      x: "k-th task to end",
      y: "change on old tasks (points)",
      place: "task number",
      height: 260,
      whole: true,
      tell: (value) => `task number ${value}`,
    };
    const nodes = entries.length ? [lineChart(this.title, entries, width, options)] : [];
    return { nodes, table: () => curveTable(entries, "task number"), remarks: bandless(entries) };
  },
};
