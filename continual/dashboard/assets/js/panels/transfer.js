// What learning a task did for the others: for earlier ones (backward) and for later ones (forward).

const TRANSFERS = [
  ["backward_transfer", "backward transfer"],
  ["forward_transfer", "forward transfer"],
];
const measured = (row, name) => isNumber(row.metrics[name]?.mean);

const transferPanel = {
  id: "transfer",
  title: "Transfer",
  hint: "Backward: change on a task from its own end to the very end. Forward: accuracy on a task just before it is trained, minus that before any training.",
  size: "half",
  has: (scenario) => scenario.rows.some((row) => TRANSFERS.some(([name]) => measured(row, name))),
  draw(scope, pick, width) {
    const able = scope.rows.filter((row) => TRANSFERS.some(([name]) => measured(row, name)));
    const { own: shown, remarks } = byMetrics(
      scope,
      able,
      TRANSFERS.map(([name]) => name),
    );
    const kinds = TRANSFERS.filter(([name]) => shown.some((row) => measured(row, name)));
    const each = width > 460 ? (width - 12) / kinds.length : width;
    const nodes = kinds.map(([name, title]) => drawTransfer(title, shown, name, each));
    const lines = () =>
      kinds.flatMap(([name]) =>
        shown.filter((row) => measured(row, name)).map((row) => [row.label, name, row.metrics[name]]),
      );
    const table = () => ({
      header: ["row", "metric", "mean", "low", "high", "n"],
      lines: lines().map(([label, name, e]) => [label, name, e.mean, e.low, e.high, e.n]),
    });
    return { nodes: nodes.length ? [h("div", { class: "beside" }, ...nodes)] : [], table, remarks };
  },
};

function drawTransfer(title, own, name, width) {
  const places = own.map((row, place) => ({ row, place, colour: look(row).colour, estimate: row.metrics[name] }));
  const data = places
    .filter(({ estimate }) => isNumber(estimate?.mean))
    .map(({ estimate: { mean, low, high, n }, ...rest }) => ({ ...rest, y: mean, low, high, n }));
  const absent = places.filter(({ row }) => !measured(row, name));
  const names = own.map((row) => named(row, 14));
  const left = 14 + 6.8 * Math.min(16, Math.max(...names.map((text) => [...text].length - 2)));
  return chart(`${title}: ${sentences(data, ({ y }) => points(y))}`, {
    width,
    height: Math.max(330, 62 + 23 * own.length), // as high as its neighbour
    marginLeft: left,
    marginRight: 16,
    marginBottom: 38,
    x: {
      label: `${title} (points)`,
      labelAnchor: "center",
      domain: extent(data, { zero: true, within: [-1, 1] }),
      grid: true,
      tickFormat: (v) => `${+(100 * v).toFixed(6)}`,
      ticks: Math.max(2, Math.floor((width - left) / 60)),
    },
    y: {
      label: null,
      domain: [own.length - 0.5, -0.5],
      ticks: own.map((_, at) => at),
      tickFormat: (at) => names[at],
      tickSize: 0,
    },
    marks: [
      Plot.ruleX([0], { stroke: "var(--axis)" }),
      Plot.link(data, {
        x1: 0,
        x2: "y",
        y1: "place",
        y2: "place",
        stroke: "colour",
        strokeWidth: 5,
        strokeOpacity: 0.3,
      }),
      Plot.link(
        data.filter((d) => isNumber(d.low)),
        { x1: "low", x2: "high", y1: "place", y2: "place", stroke: "colour", strokeWidth: 1.8, clip: "frame" },
      ),
      Plot.text(absent, {
        x: 0,
        y: "place",
        text: () => "not measured",
        textAnchor: "start",
        dx: 6,
        fill: "var(--soft)",
      }),
      data.map((d) => Plot.dot([d], { x: "y", y: "place", ...dotted(d), r: 4.5 })),
      hover(data, "y", "place", (d) => `${named(d.row, 40)}\n${title} ${told(points, d)}`),
    ],
  });
}
