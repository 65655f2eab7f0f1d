// The same at the level of classes: how well each is known at the end, and for one row how that came about.

const classesPanel = {
  id: "classes",
  title: "Accuracy per class at the end",
  hint: "Mean over seeds; bars or bands: 95% interval.",
  size: "half",
  has: withCurve("classes"),
  draw({ rows: shown }, pick, width) {
    const entries = entriesOf(shown, "classes");
    const options = { unit: percent, x: "class", y: "accuracy (%)", within: [0, 1], place: "class", height: 340 };
    return { ...placeChart(this.title, entries, width, options), table: () => curveTable(entries, "class") };
  },
};

const hasClasses = (row) => Boolean(row.class_matrix?.length);

const classTimePanel = {
  id: "class-time",
  title: "Accuracy per class over time",
  hint: "Mean over seeds after each end of a task.",
  size: "half",
  has: (scenario) => scenario.rows.some(hasClasses),
  controls: ({ rows: shown }) => [
    {
      name: "row",
      label: "strategy",
      always: true,
      options: shown.filter(hasClasses).map((row) => [row.label, named(row, 28)]),
      first: firstRow(shown.filter(hasClasses))?.label,
    },
  ],
  draw({ rows: shown }, pick, width) {
    const row = shown.find(({ label }) => label === pick.row);
    if (!row) return { nodes: [], table: () => ({ header: [], lines: [] }) };
    const cells = row.class_matrix.flatMap((line, y) =>
      line.map((value, x) => ({ x, y, key: `${y},${x}`, value, text: classText(row, x, y, value) })),
    );
    const last = row.class_matrix.at(-1);
    const says = `${named(row)}: accuracy on ${last.length} classes after each of ${row.class_matrix.length} tasks; at the end ${percent(average(last))} on average.`;
    const drawn = heat(says, cells, width, {
      columns: last.map((_, at) => String(at)),
      lines: row.class_matrix.map((_, at) => `after ${row.trained[at] ?? at}`),
      scale: ACCURACY,
      unit: percent,
      tallest: 290,
      label: ({ value }) => (100 * value).toFixed(0),
      x: "class",
    });
    return {
      nodes: [drawn],
      remarks: mixedSeeds(row),
      table: () => ({
        header: ["row", "ends", "class", "accuracy"],
        lines: cells.map((cell) => [row.label, cell.y + 1, cell.x, cell.value]),
      }),
    };
  },
};

function mixedSeeds(row) {
  const n = Math.max(row.n, row.seeds.length);
  const mixed =
    "where the seed decides which classes come when, it mixes seeds that had and had not yet learned the class";
  return n > 1 ? [`Mean over ${n} seeds; ${mixed}.`] : [];
}

function classText(row, x, y, value) {
  return `${named(row, 40)}\nclass ${x}, after task ${row.trained[y] ?? y}\naccuracy: ${percent(value)}`;
}
