// The accuracy matrix R: accuracy on task j (column) after the i-th end of a task (line); line 0 is before training.

const hasMatrix = (row) => row.matrices.some((matrix) => matrix.length);

const matrixPanel = {
  id: "matrix",
  title: "Accuracy matrix",
  hint: "Left of the white line: tasks that had been trained by then. Lines: before training, then after the end of each task; columns in the order of training.",
  size: "half tall",
  has: (scenario) => scenario.rows.some(hasMatrix),
  controls({ scenario, rows: shown }, pick) {
    const able = shown.filter(hasMatrix);
    const names = able.map((row) => [row.label, named(row, 28)]);
    const row = able.find(({ label }) => label === pick.row) ?? firstRow(able);
    const others = forbidden(scenario) ? [] : names.filter(([label]) => label !== row?.label);
    const base = firstRow(able.filter((other) => other !== row));
    const modes = [
      ["accuracy", "accuracy"],
      ["change", "change caused by each task"],
      ["minus", "minus a baseline"],
    ];
    return [
      { name: "row", label: "strategy", always: true, options: names, first: row?.label },
      { name: "show", label: "show", options: others.length ? modes : modes.slice(0, 2) },
      {
        name: "base",
        label: "baseline",
        always: true,
        options: pick.show === "minus" ? others : [],
        first: base?.label,
      },
      {
        name: "seed",
        label: "seeds",
        options: [["mean", "mean"], ...(row?.seeds ?? []).map((seed) => [`${seed}`, `seed ${seed}`])],
      },
    ];
  },
  draw({ scenario, rows: shown }, pick, width) {
    const row = shown.find(({ label }) => label === pick.row);
    if (!row) return { nodes: [], table: () => ({ header: [], lines: [] }) };
    const base = pick.show === "minus" ? shown.find(({ label }) => label === pick.base) : null;
    const seeds = matrixSeeds(row, base, pick.seed);
    const table = () => matrixTable(row, cells);
    const order = taskOrder(row, scenario.n_tasks);
    const cells = matrixCells(row, base, pick.show, seeds, order);
    if (!seeds.length)
      return { nodes: [], table, remarks: [`${named(row)} and ${named(base)} have no seed in common.`] };
    return {
      nodes: [drawMatrix(row, base, pick.show, seeds, order, cells, width)],
      table,
      remarks: matrixRemarks(row, base, pick.show, seeds),
    };
  },
};

/** Positions in row.seeds that are taken: all, the one chosen, and with a baseline only those that it has too. */
function matrixSeeds(row, base, chosen) {
  const wanted = (seed) => (chosen === "mean" || chosen === String(seed)) && (!base || base.seeds.includes(seed));
  return row.seeds.filter(wanted);
}

/** Tasks in the order in which they were first trained, then those that never were. */
function taskOrder(row, n) {
  return [...new Set([...row.trained, ...Array.from({ length: n }, (_, task) => task)])];
}

/** One cell per line and column: the mean over seeds of what is shown, its range and how many seeds have it. */
function matrixCells(row, base, show, seeds, order) {
  const matrixOf = (from, seed) => from.matrices[from.seeds.indexOf(seed)];
  const value = (seed, i, j) => {
    const matrix = matrixOf(row, seed);
    const minus = show === "change" ? matrix[i - 1]?.[j] : show === "minus" ? matrixOf(base, seed)[i]?.[j] : 0;
    return isNumber(matrix[i]?.[j]) && isNumber(minus) ? matrix[i][j] - minus : null;
  };
  const lines = Math.max(0, ...row.matrices.map((matrix) => matrix.length));
  return Array.from({ length: lines }, (_, i) =>
    order.map((j, x) => {
      const values = seeds.map((seed) => value(seed, i, j)).filter(isNumber);
      const trained = row.trained.slice(0, i).includes(j);
      return {
        i,
        j,
        x,
        y: i,
        key: `${i},${j}`,
        value: average(values),
        low: Math.min(...values),
        high: Math.max(...values),
        n: values.length,
        trained,
      };
    }),
  ).flat();
}

function drawMatrix(row, base, show, seeds, order, cells, width) {
  const differs = show !== "accuracy";
  const unit = differs ? points : percent;
  const lines = ["before", ...row.trained.map((task) => `after ${task}`)].slice(0, cells.at(-1).y + 1);
  const inTraining = ({ i, j }) => show === "change" && row.trained[i - 1] === j; // would drown the other changes
  const scale = differs ? diverging(cells.filter((cell) => !inTraining(cell)).map((cell) => cell.value)) : ACCURACY;
  const reached = lines.map((_, i) => new Set(row.trained.slice(0, i)).size);
  const what = {
    accuracy: "accuracy",
    change: "change while the line's task was trained",
    minus: base ? `accuracy minus that of ${named(base)}` : "",
  }[show];
  const told = cells.map((cell) => ({ ...cell, text: matrixText(row, cell, what, unit) }));
  const end = cells.filter((cell) => cell.i === lines.length - 1);
  const says = `${named(row)}: ${what}, ${lines.length} lines by ${order.length} tasks; mean of the last line ${unit(average(end.map((cell) => cell.value)))}.`;
  return heat(says, told, width, {
    columns: order.map(String),
    lines,
    scale,
    reached,
    unit,
    tallest: 560,
    x: "measured on task",
    label: ({ value }) => (differs ? signed(100 * value, 0) : (100 * value).toFixed(0)),
  });
}

function matrixText(row, { i, j, value, low, high, n, trained }, what, unit) {
  const when = i === 0 ? "before training" : `after task ${row.trained[i - 1]} (end ${i} of ${row.trained.length})`;
  const range = n > 1 ? `seeds from ${unit(low)} to ${unit(high)}, n = ${n}` : "1 seed";
  return `${named(row, 40)}\non task ${j}${trained ? "" : " (not trained yet)"}, ${when}\n${what}: ${unit(value)}\n${range}`;
}

function matrixRemarks(row, base, show, seeds) {
  const has = row.seeds.length;
  const few = row.n > has ? `${has} of ${row.n} seeds: the others trained in another order.` : has === 1 && "One seed.";
  const more = {
    accuracy: null,
    change: "The scale suits the tasks that were not in training; the gain of the one that was may lie beyond.",
    minus: `Paired over ${seeds.length === 1 ? "seed" : "seeds"} ${seeds.join(", ")}.`,
  }[show];
  return [few, more].filter(Boolean);
}

function matrixTable(row, cells) {
  const lines = cells.map(({ i, j, value, low, high, n, trained }) => [
    row.label,
    i,
    j,
    trained,
    value,
    n ? low : null,
    n ? high : null,
    n,
  ]);
  return { header: ["row", "ends", "task", "trained", "value", "smallest", "largest", "n"], lines };
}
