// Puts the page together: what is drawn follows from the data and from the user's choices, and from nothing else.

const PANELS = [
  strategiesPanel,
  matrixPanel,
  forgettingPanel,
  damagePanel,
  anytimePanel,
  gapPanel,
  newestPanel,
  prequentialPanel,
  computePanel,
  transferPanel,
  classesPanel,
  classTimePanel,
  runsPanel,
];
const FRAME = 12; // milliseconds of drawing before the browser may paint

const source = document.getElementById("data");
const root = document.documentElement;
const [topHost, panelHost, bottomHost] = ["top", "panels", "bottom"].map((id) => document.getElementById(id));
const choices = { scenario: null, schedule: {}, hidden: new Set(), panels: {} };
const state = {
  page: unpacked(JSON.parse(source.textContent)),
  live: source.dataset.live === "true",
  connection: "live",
};
const cards = new Map();
let queue = [];
let scheduled = false;

/** The data with its shared lists back in place; see page.py. */
function unpacked({ page, lists }) {
  const walk = (node) => {
    if (node === null || typeof node !== "object") return node;
    if (typeof node.list === "number") return lists[node.list];
    if (Array.isArray(node)) return typeof node[0] === "number" ? node : node.map(walk);
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, walk(value)]));
  };
  return walk(page);
}

function scopeNow() {
  const { page } = state;
  const scenario = page.scenarios.find(({ label }) => label === choices.scenario) ?? page.scenarios[0];
  if (!scenario) return { ...state, scenario: null };
  const visible = ({ label }) => !choices.hidden.has(label);
  return {
    ...state,
    scenario,
    schedule: scheduleOf(scenario),
    rows: scenario.rows.filter(visible),
    runs: scenario.runs.filter(({ row }) => visible({ label: row })),
  };
}

/** The chosen schedule, or the one that most rows have. */
function scheduleOf({ label, schedules, rows: all }) {
  const chosen = schedules.indexOf(choices.schedule[label]);
  if (chosen >= 0) return chosen;
  const counts = schedules.map((_, at) => all.filter((row) => row.schedule === at).length);
  return Math.max(0, counts.indexOf(Math.max(...counts)));
}

/** Draws everything anew: the top at once, the panels a frame's worth at a time. */
function drawAll() {
  delete root.dataset.ready;
  const scope = scopeNow();
  const open = topHost.querySelector("details")?.open;
  drawTop(topHost, scope, choices, changed);
  if (open && topHost.querySelector("details")) topHost.querySelector("details").open = true;
  bottomHost.textContent = `made ${state.page.made.slice(0, 19).replace("T", " ")} UTC`;
  document.title = `${state.page.title}`;
  const panels = state.live ? [strategiesPanel, runsPanel, ...PANELS] : PANELS; // who follows runs looks for them first
  const shown = scope.scenario ? [...new Set(panels)].filter((panel) => panel.has(scope.scenario)) : [];
  arrange(shown.map(cardOf));
  queue = shown.map(cardOf);
  work();
}

function changed(change) {
  change();
  drawAll();
}

function cardOf(panel) {
  if (!cards.has(panel.id)) {
    choices.panels[panel.id] = {};
    cards.set(panel.id, makeCard(panel, choices.panels[panel.id], drawOne));
  }
  return cards.get(panel.id);
}

/** Cards that stay are not touched, so that nothing scrolls or closes. */
function arrange(wanted) {
  const nodes = wanted.map((card) => card.node);
  if (nodes.length !== panelHost.children.length || nodes.some((node, at) => node !== panelHost.children[at]))
    panelHost.replaceChildren(...nodes);
}

function drawOne(card) {
  delete root.dataset.ready;
  if (!queue.includes(card)) queue.push(card);
  work();
}

function work() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const [scope, start] = [scopeNow(), performance.now()];
    while (queue.length && performance.now() - start < FRAME) drawSafely(queue.shift(), scope);
    if (queue.length) return work();
    root.dataset.version = state.page.version;
    root.dataset.ready = "true";
  });
}

/** A panel that cannot be drawn says so and leaves the others alone. */
function drawSafely(card, scope) {
  try {
    card.draw(scope);
  } catch (error) {
    console.error(error);
    card.fail();
  }
}

new ResizeObserver(() => {
  const width = String(panelHost.clientWidth);
  const first = panelHost.dataset.width === undefined;
  if (panelHost.dataset.width === width) return;
  panelHost.dataset.width = width;
  if (!first) drawAll();
}).observe(panelHost);

drawAll();
if (state.live) follow();
