// Above the panels: what this is, which scenario, which rows, and what forbids a comparison.

const FORBIDS = /^[A-Z]{2,} [A-Z]{2,}/;

/** Whether a note says that the scenario's rows must not be compared. */
function forbidden({ notes }) {
  return notes.some((note) => FORBIDS.test(note));
}

function drawTop(host, scope, choices, changed) {
  const { page, scenario, live } = scope;
  const unread = (page.notes ?? []).map(warning); // live: what could not be read, and why
  if (!scenario) {
    const empty = h("p", { class: "empty" }, "There are no runs to show.");
    return refill(host, h("h1", {}, userText(page.title)), empty, ...unread);
  }
  const controls = [];
  if (page.scenarios.length > 1) {
    const options = page.scenarios.map(({ label }, at) => [String(at), short(label, 60)]);
    const change = (at) => changed(() => (choices.scenario = page.scenarios[at].label));
    controls.push(
      select({ name: "scenario", label: "scenario", options, value: String(page.scenarios.indexOf(scenario)), change }),
    );
  }
  if (scenario.schedules.length > 1) {
    const options = scenario.schedules.map((text, at) => [String(at), short(text, 60)]);
    const change = (at) => changed(() => (choices.schedule[scenario.label] = scenario.schedules[at]));
    controls.push(select({ name: "schedule", label: "evaluated", options, value: String(scope.schedule), change }));
  }
  refill(
    host,
    h(
      "div",
      { class: "line" },
      h("h1", {}, userText(page.title)),
      h("div", { class: "controls" }, ...controls),
      live ? liveState(scope) : null,
    ),
    h(
      "p",
      { class: "about" },
      ...(page.scenarios.length > 1 ? [] : [userText(scenario.label), " · "]),
      counted(scenario),
    ),
    ...unread,
    ...scenarioNotes(scenario),
    legend(scope, choices, changed),
  );
}

function counted({ runs, rows: all, n_tasks: tasks }) {
  const open = runs.filter((run) => run.state !== "finished").length;
  const some = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  return `${some(all.length, "row")} · ${some(runs.length, "run")}${open ? ` (${open} unfinished)` : ""} · ${some(tasks, "task")}`;
}

function liveState({ connection }) {
  const words = { live: "● live", lost: "○ connection lost, trying again" };
  return h("span", { class: "pill", role: "status", data: { connection } }, words[connection]);
}

function warning(note) {
  return h("p", { class: "warning", role: "note" }, "⚠ ", userText(note, "user wrap"));
}

function scenarioNotes({ notes }) {
  const warnings = notes.filter((note) => FORBIDS.test(note));
  const others = notes.filter((note) => !FORBIDS.test(note));
  const list = h("ul", {}, ...others.map((note) => h("li", {}, userText(note, "user wrap"))));
  const summary = h("summary", {}, `${others.length} ${others.length === 1 ? "note" : "notes"} on these runs`);
  return [
    ...warnings.map(warning),
    others.length ? h("details", { class: "notes", data: { keep: "notes" } }, summary, list) : null,
  ];
}

const MANY = 8; // rows; to look at few of more, one begins with none

/** A button per row; switching one off takes it out of every panel. */
function legend({ scenario }, choices, changed) {
  const flip = (label) => () => changed(() => choices.hidden.delete(label) || choices.hidden.add(label));
  const buttons = scenario.rows.map((row) =>
    h(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-pressed": String(!choices.hidden.has(row.label)),
        data: { row: row.label, focus: `legend ${row.label}` },
        on: { click: flip(row.label) },
      },
      rowName(row),
    ),
  );
  const hidden = scenario.rows.filter((row) => choices.hidden.has(row.label)).length;
  const every = (text, change) =>
    h(
      "button",
      { type: "button", class: "chip", data: { focus: `legend: ${text}` }, on: { click: () => changed(change) } },
      text,
    );
  const hideAll = () => scenario.rows.forEach((row) => choices.hidden.add(row.label));
  const all = [
    hidden ? every("show all", () => choices.hidden.clear()) : null,
    scenario.rows.length > MANY && hidden < scenario.rows.length ? every("hide all", hideAll) : null,
  ];
  return h(
    "div",
    { class: "legend", role: "group", "aria-label": "rows: click to hide or show" },
    ...buttons,
    ...all,
  );
}
