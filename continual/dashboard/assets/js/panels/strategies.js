// Every row with its metrics: mean and 95% interval over seeds.

const strategiesPanel = {
  id: "strategies",
  title: "Strategies",
  hint: "Mean over n seeds, beside it how far the 95% interval reaches. Bold: the best mean, upper bound and unfinished rows aside. [k]: k seeds only. Click a heading to sort.",
  size: "full",
  has: (scenario) => scenario.rows.length > 0 && scenario.metrics.length > 0,
  controls: ({ scenario }) =>
    scenario.metrics.some((metric) => !metric.standard) ? [{ name: "all", label: "all metrics", check: true }] : [],
  draw({ scenario, rows: shown }, pick, width, set) {
    const metrics = scenario.metrics.filter((metric) => metric.standard || pick.all);
    const columns = [
      { key: "row", title: "strategy", left: true, value: (row) => row.label, cell: rowName },
      ...metrics.map((metric) => metricColumn(metric, shown, forbidden(scenario) ? null : bestMean(metric, shown))),
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
      table: () => metricTable(scenario.metrics, shown),
      remarks: fewSeeds(shown),
    };
  },
};

function firstSort(metrics) {
  const first = metrics.find((metric) => metric.better) ?? metrics[0];
  return first ? [first.name, first.better < 0 ? 1 : -1] : ["row", 1];
}

function metricColumn(metric, shown, best) {
  const of = (row) => row.metrics[metric.name];
  const means = shown.map((row) => of(row)?.mean).filter(isNumber);
  const [low, high] = [Math.min(0, ...means), Math.max(0, ...means)];
  const cell = (row) => {
    const estimate = of(row);
    if (!isNumber(estimate?.mean)) return h("span", { class: "absent", title: "not measured" }, ABSENT);
    const fewer = estimate.n !== row.n ? ` [${estimate.n}]` : "";
    const strong = estimate.mean === best && row.role !== "bound" && !row.provisional;
    return h(
      "span",
      { class: "estimate", title: `${estimate.method}, n = ${estimate.n}` },
      h(strong ? "b" : "span", {}, quantity(metric.unit, estimate.mean)),
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

/** A line from 0 to `value` on a scale from `low` to `high`. */
function bar(value, low, high, colour) {
  const share = (part) => `${high > low ? (100 * part) / (high - low) : 0}%`;
  return h("i", {
    class: "bar",
    style: { left: share(Math.min(0, value) - low), width: share(Math.abs(value)), background: colour },
  });
}

/** None where rows do not differ, or where neither direction is better. */
function bestMean({ name, better }, shown) {
  const means = shown
    .filter((row) => row.role !== "bound" && !row.provisional)
    .map((row) => row.metrics[name]?.mean)
    .filter(isNumber);
  const [low, high] = [Math.min(...means), Math.max(...means)];
  return better && low < high ? (better > 0 ? high : low) : null;
}

function fewSeeds(shown) {
  const single = shown.filter((row) => Object.values(row.metrics).some((estimate) => estimate.n === 1));
  return single.length ? [`One seed, so no interval: ${single.map((row) => short(row.label)).join(", ")}.`] : [];
}

function metricTable(metrics, shown) {
  const lines = shown.flatMap((row) =>
    metrics
      .filter((metric) => row.metrics[metric.name])
      .map(({ name }) => {
        const { mean, low, high, n, method } = row.metrics[name];
        return [row.label, row.role, name, mean, low, high, n, method];
      }),
  );
  return { header: ["row", "role", "metric", "mean", "low", "high", "n", "method"], lines };
}
