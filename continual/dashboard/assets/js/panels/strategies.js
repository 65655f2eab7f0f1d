// Every row with its metrics: mean and 95% interval over seeds.

const strategiesPanel = {
  id: "strategies",
  title: "Strategies",
  hint: "Mean over n seeds, beside it how far the 95% interval reaches. Bold: the best mean, if its interval overlaps no other row's; upper bound and unfinished rows do not compete, costs neither, and a single seed has no interval. [k]: k seeds only. Click a heading to sort.",
  size: "full",
  has: (scenario) => scenario.rows.length > 0 && scenario.metrics.length > 0,
  controls: ({ scenario }) =>
    scenario.metrics.some((metric) => !metric.standard) ? [{ name: "all", label: "all metrics", check: true }] : [],
  draw(scope, pick, width, set) {
    const { scenario, rows: shown } = scope;
    const metrics = scenario.metrics.filter((metric) => metric.standard || pick.all);
    const columns = [
      { key: "row", title: "strategy", left: true, value: (row) => row.label, cell: rowName },
      ...metrics.map((metric) => metricColumn(metric, scope)),
      { key: "n", title: "n", value: (row) => row.n, cell: (row) => String(row.n) },
    ];
    const table = sortedTable({
      columns,
      items: shown,
      sort: pick.sort ?? firstSort(metrics),
      onSort: (sort) => set("sort", sort),
      line: (row) => ({ data: { row: row.label }, class: row.provisional ? "provisional" : null }),
      caption: "Metrics of every strategy",
    });
    return {
      nodes: shown.length ? [table] : [],
      table: () => metricTable(scenario, shown),
      remarks: [...fewSeeds(shown), ...otherwise(metrics, scope)],
    };
  },
};

function firstSort(metrics) {
  const first = metrics.find((metric) => metric.better) ?? metrics[0];
  return first ? [first.name, first.better < 0 ? 1 : -1] : ["row", 1];
}

function metricColumn(metric, { scenario, rows: all, schedule }) {
  const told = (row) => !metric.over_time || row.schedule === schedule;
  const of = (row) => (told(row) ? row.metrics[metric.name] : undefined);
  const shown = all.filter(told);
  const best = forbidden(scenario) ? null : bestRow(metric, shown);
  const means = shown.map((row) => of(row)?.mean).filter(isNumber);
  const [low, high] = [Math.min(0, ...means), Math.max(0, ...means)];
  const cell = (row) => {
    const estimate = of(row);
    if (!estimate) return absentCell(row.metrics[metric.name] ? "evaluated on another schedule" : "not measured");
    const fewer = estimate.n !== row.n ? ` [${estimate.n}]` : "";
    if (!isNumber(estimate.mean))
      return h("span", { class: "estimate", title: estimate.method }, INFINITE, h("small", {}, fewer));
    return h(
      "span",
      { class: "estimate", title: `${estimate.method}, n = ${estimate.n}` },
      h(row === best ? "b" : "span", {}, quantity(metric.unit, estimate.mean)),
      h("small", {}, spread(metric.unit, estimate) + fewer),
      bar(estimate.mean, low, high, look(row).colour),
    );
  };
  const title =
    metric.unit === "%" || metric.unit === "s" || metric.unit === "rows"
      ? `${metric.title} (${metric.unit})`
      : metric.title;
  return { key: metric.name, title, better: metric.better, value: (row) => of(row)?.mean, cell };
}

function absentCell(why) {
  return h("span", { class: "absent", title: why }, ABSENT);
}

/** A line from 0 to `value` on a scale from `low` to `high`. */
function bar(value, low, high, colour) {
  const share = (part) => `${high > low ? (100 * part) / (high - low) : 0}%`;
  return h("i", {
    class: "bar",
    style: { left: share(Math.min(0, value) - low), width: share(Math.abs(value)), background: colour },
  });
}

/** The row whose interval lies beyond those of all others, if there is one; a row without interval may lie anywhere. */
function bestRow({ name, better, cost }, shown) {
  const rivals = shown.filter((row) => competes(row) && row.metrics[name]);
  if (!better || cost || rivals.length < 2) return null;
  const ends = ({ metrics: { [name]: own } }) =>
    isNumber(own.low) && isNumber(own.high)
      ? [better * own.low, better * own.high].sort((a, b) => a - b)
      : [-Infinity, Infinity];
  const beats = (row, other) => row === other || ends(row)[0] > ends(other)[1];
  return rivals.find((row) => rivals.every((other) => beats(row, other))) ?? null;
}

function fewSeeds(shown) {
  const single = shown.filter((row) => Object.values(row.metrics).some((estimate) => estimate.n === 1));
  return single.length ? [`One seed, so no interval: ${single.map((row) => short(row.label)).join(", ")}.`] : [];
}

/** Which rows lack numbers here because they were evaluated at other moments. */
function otherwise(metrics, scope) {
  const timed = metrics.filter((metric) => metric.over_time);
  const able = scope.rows.filter((row) => timed.some(({ name }) => row.metrics[name]));
  return bySchedule(scope, able, `“${ABSENT}” under ${timed.map(({ title }) => title).join(", ")}`).remarks;
}

function metricTable({ metrics, schedules }, shown) {
  const lines = shown.flatMap((row) =>
    metrics
      .filter((metric) => row.metrics[metric.name])
      .map(({ name }) => {
        const { mean, low, high, n, method } = row.metrics[name];
        return [row.label, row.role, schedules[row.schedule], name, mean, low, high, n, method];
      }),
  );
  return { header: ["row", "role", "schedule", "metric", "mean", "low", "high", "n", "method"], lines };
}
