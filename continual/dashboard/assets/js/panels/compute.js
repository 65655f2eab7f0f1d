// What accuracy costs: forward-equivalents per row across, bytes as the area of a disc, and the front that nothing beats.

const COST = "forward_equivalents_per_row";
const accuracyMetric = (scenario) =>
  ["average_accuracy", "prequential_accuracy"].find((name) =>
    scenario.rows.some((row) => isNumber(row.metrics[name]?.mean)),
  );

const computePanel = {
  id: "compute",
  title: "Accuracy against compute",
  hint: "Area of the disc: peak memory. Dashed: rows that no other beats in both accuracy and compute (upper bound and unfinished rows aside).",
  size: "half",
  has: (scenario) => {
    const name = accuracyMetric(scenario);
    return (
      name !== undefined &&
      scenario.rows.some((row) => row.metrics[COST]?.mean > 0 && isNumber(row.metrics[name]?.mean))
    );
  },
  draw(scope, pick, width) {
    const metric = accuracyMetric(scope.scenario);
    const able = scope.rows.filter((row) => row.metrics[COST]?.mean > 0 && isNumber(row.metrics[metric]?.mean));
    const { own, remarks } = byMetrics(scope, able, [COST, metric]);
    const data = own.map((row) => costPoint(row, metric));
    const header = ["row", COST, metric, "low", "high", "peak_bytes", "on the front"];
    const barred = forbidden(scope.scenario);
    const front = barred ? [] : paretoFront(data);
    if (barred) remarks.push("No dashed line: these rows are not comparable.");
    const table = () => ({
      header,
      lines: data.map((d) => [d.row.label, d.x, d.y, d.low, d.high, d.bytes, front.includes(d)]),
    });
    return { nodes: data.length ? [drawCost(this.title, data, front, width)] : [], table, remarks };
  },
};

function costPoint(row, metric) {
  const { mean: y, low, high, n } = row.metrics[metric];
  const cost = row.metrics[COST];
  return {
    row,
    colour: look(row).colour,
    x: cost.mean,
    x1: cost.low,
    x2: cost.high,
    y,
    low,
    high,
    n,
    bytes: row.metrics.peak_bytes?.mean ?? null,
  };
}

/** From the cheapest on, every row that is better than all cheaper ones. */
function paretoFront(data) {
  const rivals = data.filter(({ row }) => competes(row)).sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return rivals.filter(({ y }) => y > best && ((best = y), true));
}

function drawCost(title, data, front, width) {
  const height = Math.max(330, Math.min(62 + 23 * data.length, width)); // up to its neighbour's
  const costs = data.flatMap((d) => [d.x, d.x1, d.x2]).filter((cost) => cost > 0);
  const x = { type: "log", domain: [Math.min(...costs) / 1.6, Math.max(...costs) * 1.6] };
  const [low, high] = extent(data, { within: [0, 1] });
  const y = { domain: [low - (high - low) / 20, high + (high - low) / 20] }; // room for half a disc
  const most = Math.max(0, ...data.map(({ bytes }) => bytes ?? 0));
  const radius = ({ bytes }) => (most ? 26 * Math.sqrt((bytes ?? 0) / most) : 0);
  const labels = placedNames(data, radius, { ...x, range: [52, width - 16] }, { ...y, range: [height - 38, 22] });
  const says = sentences(
    data,
    (d) =>
      `${percent(d.y)} at ${figures(d.x)} forwards per row${isNumber(d.bytes) ? `, ${quantity("B", d.bytes)}` : ""}`,
  );
  return chart(`${title}: ${says}`, {
    width,
    height,
    marginBottom: 38,
    marginTop: 22,
    marginRight: 16,
    x: {
      ...x,
      label: "forwards per row (log)",
      tickFormat: (v) => figures(v),
      ticks: Math.max(2, Math.floor(width / 110)),
    },
    y: { ...y, label: "accuracy (%)", grid: true, tickFormat: (v) => `${+(100 * v).toFixed(6)}`, ticks: 6 },
    marks: [
      Plot.line(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--soft)", strokeDasharray: "4 3" }),
      Plot.dot(data, {
        x: "x",
        y: "y",
        r: radius,
        fill: "colour",
        fillOpacity: 0.22,
        stroke: "colour",
        strokeOpacity: 0.6,
      }),
      Plot.ruleX(
        data.filter((d) => isNumber(d.low)),
        { x: "x", y1: "low", y2: "high", stroke: "colour", clip: "frame" },
      ),
      Plot.ruleY(
        data.filter((d) => isNumber(d.x1) && d.x1 < d.x2),
        { y: "y", x1: (d) => Math.max(d.x1, x.domain[0]), x2: "x2", stroke: "colour" },
      ),
      data.map((d) => Plot.dot([d], { x: "x", y: "y", ...dotted(d), r: 4.5 })),
      labels.map((label) =>
        Plot.text([label], { x: "x", y: "y", text: "text", textAnchor: label.anchor, fill: "var(--ink)", ...HALO }),
      ),
      hover(
        data,
        "x",
        "y",
        (d) =>
          `${named(d.row, 40)}\naccuracy ${told(percent, d)}\n${figures(d.x)} forwards per row${isNumber(d.bytes) ? `\nmemory ${quantity("B", d.bytes)}` : ""}`,
      ),
    ],
    r: { type: "identity" },
  });
}

/** Names beside their symbols where they cover no other name or symbol; the others are in the legend and on hover. */
function placedNames(data, radius, x, y) {
  const [acrossScale, upScale] = [Plot.scale({ x }), Plot.scale({ y })];
  const spots = data.map((d) => ({ d, px: acrossScale.apply(d.x), py: upScale.apply(d.y), text: named(d.row, 16) }));
  const taken = spots.map(({ px, py }) => [px - 6, py - 6, px + 6, py + 6]);
  const placed = [];
  for (const { d, px, py, text } of spots) {
    const [wide, far] = [6.8 * [...text].length, Math.min(radius(d), 9) + 5];
    const tries = [
      ["start", px + far, py],
      ["end", px - far, py],
      ["middle", px, py - far - 6],
      ["middle", px, py + far + 7],
    ];
    for (const [anchor, ax, ay] of tries) {
      const left = anchor === "start" ? ax : anchor === "end" ? ax - wide : ax - wide / 2;
      const box = [left, ay - 7, left + wide, ay + 7];
      const inside =
        box[0] >= x.range[0] && box[2] <= x.range[1] + 12 && box[1] >= y.range[1] - 18 && box[3] <= y.range[0];
      if (!inside || taken.some((o) => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3])) continue;
      taken.push(box);
      placed.push({ x: acrossScale.invert(ax), y: upScale.invert(ay), text, anchor });
      break;
    }
  }
  return placed;
}
