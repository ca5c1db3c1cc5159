// The page: asks for the fleet once a second and changes only what has changed.
const ASK_MS = 1000, STALE_MS = 4000, EVENTS_KEPT = 200;
const $ = (id) => document.getElementById(id);
let tag = "", answered = performance.now(), seen = null, since = null;

function make(kind, attributes = {}, ...children) {
  const node = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) name === "class" ? (node.className = value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Puts one child a row below `parent`, by key and in order; `fill(node, row)` says how it looks.
function each(parent, rows, keyOf, create, fill) {
  const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const row of rows) {
    const key = keyOf(row);
    let node = known.get(key);
    known.delete(key);
    if (!node) { node = create(row); node.dataset.key = key; }
    fill(node, row);
    if (node === place) place = place.nextElementSibling; else parent.insertBefore(node, place);
  }
  for (const node of known.values()) node.remove();
}

function put(node, text) { if (node.textContent !== text) node.textContent = text; }

function toneOf(unit) {
  if (unit.health === "failing" || unit.active === "failed") return "bad";
  if (["activating", "deactivating", "reloading"].includes(unit.active)) return "busy";
  if (unit.active === "active") return "ok";
  return unit.desired === "launched" && unit.sub !== "exited" && unit.result === "success" && !unit.machine ? "bad" : "off";
}
const MACHINE_TONES = { ready: "ok", draining: "busy", drained: "busy", rebooting: "busy", lost: "bad" };

function facts(look) {
  const c = look.cluster, active = look.counts.active || 0;
  const rows = c ? [
    ["cluster", c.name.slice(0, 8), ""], ["leader", c.leader || "none", c.leader ? "" : "bad"], ["term", c.term, ""], ["revision", c.revision, ""],
    ["quorum", c.quorum_margin < 0 ? "lost" : `tolerates ${c.quorum_margin} more`, c.quorum_margin < 0 ? "bad" : c.quorum_margin ? "ok" : "busy"],
  ] : [["cluster", "does not answer", "bad"]];
  rows.push(["units", `${active} of ${look.wanted} up`, active >= look.wanted ? "ok" : "busy"]);
  each($("facts"), rows, (row) => row[0], (row) => make("div", {}, make("dt", {}, row[0]), make("dd")), (node, row) => {
    put(node.lastChild, String(row[1]));
    node.lastChild.className = row[2];
  });
  const failing = (look.counts.failing || 0) + (look.counts.failed || 0);
  const parts = [["ok", active], ["busy", look.units_in_all - active - failing - (look.counts.inactive || 0)], ["bad", failing], ["off", look.counts.inactive || 0]];
  each($("bar"), parts, (part) => part[0], (part) => make("span", { class: part[0] }), (node, part) => { node.style.flexGrow = part[1]; });
}

function units(node, rows) {
  each(node, rows, (unit) => unit.unit, (unit) => {
    const chip = make("button", { class: "unit", type: "button" }, unit.unit.replace(/\.service$/, ""));
    chip.addEventListener("click", () => about(unit.unit));
    return chip;
  }, (chip, unit) => {
    const tone = toneOf(unit), ports = Object.entries(unit.ports || {}).map(([name, port]) => `${name} ${port}`).join(", ");
    chip.className = `unit ${tone}`;
    chip.title = `${unit.unit}: ${unit.active} (${unit.sub}), health ${unit.health}` + (unit.restarts ? `, ${unit.restarts} restarts` : "") + (ports ? `, ${ports}` : "");
  });
}

function machines(look) {
  const words = $("find").value.trim().toLowerCase();
  const hit = (text) => text.toLowerCase().includes(words);
  const at = new Map();
  for (const unit of look.units) {
    if (words && !hit(unit.unit) && !hit(unit.machine)) continue;
    if (!unit.machine && unit.desired === "inactive") continue;
    at.has(unit.machine) ? at.get(unit.machine).push(unit) : at.set(unit.machine, [unit]);
  }
  for (const rows of at.values()) rows.sort((a, b) => a.unit.localeCompare(b.unit, undefined, { numeric: true }));
  const rows = look.machines.filter((m) => !words || hit(m.name) || at.has(m.name));
  if (at.has("")) rows.push({ id: "", name: "nowhere", state: "", metadata: {}, units: at.get("").length });
  each($("machines"), rows, (m) => `m${m.id}`, () => make("article", {},
    make("h3", {}, make("span"), make("span", { class: "tag" }), make("span", { class: "tag" })), make("div", { class: "tags" }), make("div", { class: "units" }), make("footer")), (card, m) => {
    const [head, metadata, inside, foot] = card.children, tone = m.id ? MACHINE_TONES[m.state] || "off" : "bad";
    card.className = tone;
    const leads = look.cluster && m.id && look.cluster.leader === m.name;
    put(head.children[0], m.name);
    put(head.children[1], m.state); head.children[1].className = `tag ${tone}`;
    put(head.children[2], !m.id ? "waiting for a machine" : leads ? "★ leader" : m.voter ? "voter" : m.role);
    each(metadata, Object.entries(m.metadata), (pair) => pair[0], () => make("span", { class: "tag" }), (node, pair) => put(node, `${pair[0]}=${pair[1]}`));
    units(inside, at.get(m.name === "nowhere" && !m.id ? "" : m.name) || []);
    put(foot, m.id ? `${m.address} · version ${m.version}${m.slot ? ` · slot ${m.slot}` : ""} · ${m.units} units` : "");
  });
}

function notes(look) {
  const rows = [];
  if (look.trouble.length) rows.push({ key: "t", text: `Not answered just now: ${look.trouble.join(", ")}`, tone: "bad" });
  if (look.units_in_all > look.units.length) rows.push({ key: "n", text: `${look.units.length} of ${look.units_in_all} units are shown, those in trouble first` });
  for (const lock of look.locks) {
    for (const held of lock.holders) rows.push({ key: `l${lock.group}${held.machine}`, text: `Lock ${lock.group}: ${held.machine} holds it (${held.reason || "no reason given"})`, tone: held.overdue ? "bad" : "busy" });
    if (lock.queue.length) rows.push({ key: `q${lock.group}`, text: `Lock ${lock.group}: ${lock.queue.length} wait` });
  }
  for (const rollout of look.rollouts) rows.push({ key: `r${rollout.unit}`, text: `Rollout of ${rollout.unit}, ${rollout.phase}: ${rollout.changed} of ${rollout.targets}`, value: rollout.changed, max: rollout.targets });
  const box = $("notes");
  if (rows.length && !box.firstChild) box.append(make("h2", {}, "Under way"), make("div"));
  if (!rows.length) { box.replaceChildren(); return; }
  each(box.lastChild, rows, (row) => row.key, (row) => make("div", {}, make("p"), ...(row.max ? [make("progress")] : [])), (node, row) => {
    put(node.firstChild, row.text);
    node.firstChild.className = row.tone || "";
    if (row.max) { node.lastChild.max = row.max; node.lastChild.value = row.value; }
  });
}

function show(look) {
  seen = look;
  facts(look); machines(look); notes(look);
  document.title = look.trouble.length || (look.counts.failing || 0) + (look.counts.failed || 0) ? "⚠ Argosy" : "Argosy";
}

async function ask(path, headers = {}) {
  const answer = await fetch(path, { headers, signal: AbortSignal.timeout(8000), cache: "no-store" });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

async function look() {
  const answer = await ask("/ui/v1/overview", tag ? { "If-None-Match": tag } : {});
  answered = performance.now();
  if (answer) { tag = answer.headers.get("ETag") || ""; show(await answer.json()); return true; }
  return false;
}

async function events() {
  const answer = await (await ask(since === null ? "/ui/v1/events" : `/ui/v1/events?since=${since}`)).json();
  since = answer.revision;
  for (const row of answer.rows) {
    const where = [row.unit, row.machine].filter(Boolean).join(" on ") || "cluster";
    const when = new Date(row.time * 1000);
    $("events").prepend(make("li", {}, make("time", { datetime: when.toISOString() }, when.toLocaleTimeString()), make("b", {}, where), ` ${row.text}`));
  }
  while ($("events").children.length > EVENTS_KEPT) $("events").lastChild.remove();
  if (answer.more) await events();
}

function table(head, rows) {
  return make("table", {}, make("tr", {}, ...head.map((text) => make("th", {}, text))), ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", {}, String(text ?? ""))))));
}

async function about(name) {
  const dialog = $("about"), box = dialog.querySelector("div");
  box.replaceChildren(make("h3", {}, name), make("p", { class: "empty" }, "asking …"));
  if (!dialog.open) dialog.showModal();
  try {
    const unit = await (await ask(`/ui/v1/unit?name=${encodeURIComponent(name)}`)).json();
    const parts = [make("h3", {}, name), make("p", {}, unit.reason)];
    if (Object.keys(unit.machines).length) parts.push(make("h2", {}, "On each machine"), table(["machine", "why"], Object.entries(unit.machines)));
    const past = [...(unit.history || [])].reverse();
    if (past.length) parts.push(make("h2", {}, "Its past"), table(["when", "machine", "", ""], past.map((row) => [new Date(row.time * 1000).toLocaleString(), row.machine, row.event, row.detail])));
    box.replaceChildren(...parts);
  } catch (error) {
    box.replaceChildren(make("h3", {}, name), make("p", {}, `It could not be asked: ${error.message}`));
  }
}

function age() {
  const ms = performance.now() - answered, stale = ms > STALE_MS, live = $("live");
  put(live, stale ? `no answer for ${Math.round(ms / 1000)} s` : "live");
  live.className = stale ? "bad" : "";
  document.querySelector("main").classList.toggle("stale", stale);
}

async function run() {
  try {
    if (await look() || since === null) await events();
  } catch { /* the age of the last answer says it */ }
  age();
  setTimeout(run, document.hidden ? 5 * ASK_MS : ASK_MS);
}

$("find").addEventListener("input", () => seen && machines(seen));
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("find")) { event.preventDefault(); $("find").focus(); }
});
setInterval(age, ASK_MS);
run();
