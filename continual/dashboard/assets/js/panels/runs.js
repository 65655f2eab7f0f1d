// Every run: how it stands, how far it is, where it lies.

const STATES = { finished: "✓", running: "▶", interrupted: "‖", failed: "✗", killed: "⊘" };

const runsPanel = {
  id: "runs",
  title: "Runs",
  hint: "Config: what makes the run's config from the defaults.",
  size: "full",
  has: (scenario) => scenario.runs.length > 0,
  draw({ runs, scenario }, pick, width, set) {
    const rowOf = (run) => scenario.rows.find((row) => row.label === run.row);
    const columns = [
      {
        key: "row",
        title: "strategy",
        left: true,
        value: (run) => run.row,
        cell: (run) => (rowOf(run) ? rowName(rowOf(run)) : userText(run.row)),
      },
      { key: "seed", title: "seed", value: (run) => run.seed, cell: (run) => String(run.seed) },
      { key: "state", title: "state", left: true, value: (run) => run.state, cell: runState },
      { key: "progress", title: "tasks ended", value: (run) => run.ended / (run.tasks || 1), cell: runProgress },
      { key: "rows_seen", title: "rows seen", value: (run) => run.rows_seen, cell: (run) => rows(run.rows_seen) },
      {
        key: "seconds",
        title: "seconds",
        value: (run) => run.seconds,
        cell: (run) => (isNumber(run.seconds) ? figures(run.seconds) : ABSENT),
      },
      {
        key: "created",
        title: "started",
        left: true,
        value: (run) => run.created,
        cell: (run) => run.created.slice(0, 16).replace("T", " "),
      },
      {
        key: "difference",
        title: "config",
        left: true,
        value: (run) => run.difference.join(" "),
        cell: (run) => userText(run.difference.join(" ") || "the defaults", "user wrap"),
      },
      {
        key: "path",
        title: "path",
        left: true,
        value: (run) => run.path,
        cell: (run) => userText(run.path, "user wrap path"),
      },
    ];
    if (runs.some((run) => wandbLink(run)))
      columns.push({ key: "wandb", title: "wandb", left: true, value: (run) => run.wandb, cell: wandbLink });
    const line = (run) => ({ data: { run: `${run.row}/${run.seed}`, state: run.state } });
    const onSort = (sort) => set("sort", sort);
    const table = sortedTable({
      columns,
      items: runs,
      sort: pick.sort ?? ["row", 1],
      onSort,
      line,
      caption: "All runs",
    });
    return { nodes: runs.length ? [table] : [], table: () => runTable(runs) };
  },
};

function runState(run) {
  const words = run.state + (run.counted || run.state !== "finished" ? "" : ", not counted");
  return h(
    "span",
    { class: `state state-${run.state in STATES ? run.state : "other"}` },
    h("span", { "aria-hidden": "true" }, `${STATES[run.state] ?? "?"} `),
    words,
    run.reason ? h("small", {}, userText(`: ${run.reason}`, "user wrap")) : null,
  );
}

function runProgress(run) {
  const text = `${run.ended} of ${run.tasks}`;
  if (run.state === "finished") return h("span", {}, text);
  return h(
    "span",
    { class: "progress" },
    h("progress", { max: Math.max(1, run.tasks), value: run.ended, "aria-label": text }),
    text,
  );
}

/** A link, if it is one to follow safely; servers of one's own may lack a certificate. */
function wandbLink(run) {
  if (typeof run.wandb !== "string" || !/^https?:\/\//.test(run.wandb)) return null;
  return h("a", { href: run.wandb, target: "_blank", rel: "noopener noreferrer" }, "open");
}

function runTable(runs) {
  const header = [
    "row",
    "seed",
    "state",
    "reason",
    "counted",
    "ended",
    "tasks",
    "rows_seen",
    "seconds",
    "created",
    "difference",
    "path",
    "wandb",
  ];
  return {
    header,
    lines: runs.map((run) => header.map((name) => (name === "difference" ? run.difference.join(" ") : run[name]))),
  };
}
