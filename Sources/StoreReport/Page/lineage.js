// The lineage: time goes to the right, each line of descent has a lane. Long straight runs are folded.

const foldLongerThan = 9;
const keptAtEnds = 3;
const laneHeight = 46;
const lineageView = {spacing: 0, collapse: true, opened: new Set()};

// The nodes with their children; a deleted one stands just before its first child in time.
const tree = data.lineage.map((node, index) => ({...node, index, children: [], time: 0}));
for (const node of tree) if (node.parent !== undefined) tree[node.parent].children.push(node.index);
for (const node of [...tree].reverse()) {
  const living = node.checkpoint !== undefined;
  const first = node.children.reduce((least, child) => Math.min(least, tree[child].time), Infinity);
  node.time = living ? checkpoints[node.checkpoint].createdMilliseconds : first - 0.5;
  node.size = 1 + sum(node.children.map(child => tree[child].size));
}
const nodeOf = new Map(tree.filter(node => node.checkpoint !== undefined).map(node => [node.checkpoint, node.index]));
const flagsOf = new Map();
for (const reference of data.references) {
  flagsOf.set(reference.checkpoint, [...flagsOf.get(reference.checkpoint) ?? [], reference.name]);
}

const isPlain = node => node.checkpoint !== undefined && node.children.length === 1 && node.parent !== undefined
  && tree[node.parent].children.length === 1 && !flagsOf.has(node.checkpoint)
  && node.checkpoint !== state.checkpoint && node.checkpoint !== state.compare;

// What is drawn, in the order of time: nodes, and runs of nodes that are folded into one thing.
function lineageItems() {
  const items = [];
  const itemOf = new Map();
  const add = nodes => {
    const item = {nodes, head: tree[nodes[0]], tail: tree[nodes.at(-1)], isFold: nodes.length > 1};
    items.push(item);
    for (const node of nodes) itemOf.set(node, item);
  };
  for (const node of tree) {
    if (itemOf.has(node.index)) continue;
    if (!lineageView.collapse || !isPlain(node) || lineageView.opened.has(node.index)) { add([node.index]); continue; }
    const run = [node.index];
    for (let next = tree[node.children[0]]; isPlain(next) && !lineageView.opened.has(next.index); next = tree[next.children[0]]) {
      run.push(next.index);
    }
    if (run.length <= foldLongerThan) { run.forEach(one => add([one])); continue; }
    run.slice(0, keptAtEnds).forEach(one => add([one]));
    add(run.slice(keptAtEnds, -keptAtEnds));
    run.slice(-keptAtEnds).forEach(one => add([one]));
  }
  // Stable: of equal times, parents first.
  items.sort((a, b) => a.head.time - b.head.time);
  let column = 0;
  for (const item of items) {
    item.parent = item.head.parent === undefined ? null : itemOf.get(item.head.parent);
    // A clock that was set back must not draw a child before its parent.
    if (item.parent) column = Math.max(column, item.parent.column + 1);
    // What is folded has a number in it, and takes the place of two.
    item.column = item.isFold ? column + 0.5 : column;
    column += item.isFold ? 2 : 1;
    const heir = item.tail.children.reduce((best, child) => best === null || tree[child].size > tree[best].size ? child : best, null);
    item.heir = heir === null ? null : itemOf.get(heir);
  }
  return items;
}

// Gives each line of descent the lowest lane that is free as long as it lasts.
function assignLanes(items, labelColumns) {
  const ends = [];
  for (const item of items) {
    if (item.parent && item.parent.heir === item) continue;
    let last = item;
    for (let next = item; next; next = next.heir) { last = next; }
    const from = item.parent ? item.parent.column : item.column;
    let lane = ends.findIndex(end => end < from);
    if (lane < 0) lane = ends.length;
    ends[lane] = last.column + labelColumns;
    for (let next = item; next; next = next.heir) next.lane = lane;
  }
  return ends.length;
}

const labelTexts = one => one.labels.map(label => `${label.key}=${label.value}`);

function lineageLabel(node) {
  if (node.checkpoint === undefined) return "deleted checkpoint";
  const one = checkpoints[node.checkpoint];
  const flags = flagsOf.get(node.checkpoint);
  return `${one.name}\n${moment(one.createdMilliseconds)}\nstored ${bytes(one.storedBytes)}, ${counted(one.newPages, "new page")}`
    + (flags ? `\nnamed by ${flags.join(", ")}` : "") + (one.labels.length ? `\n${labelTexts(one).join(", ")}` : "");
}

function drawLineage() {
  const [svg, scroll] = [byId("lineage-svg"), byId("lineage-scroll")];
  const items = lineageItems();
  const most = largest(items.map(item => item.column));
  const fit = (scroll.clientWidth - 180) / Math.max(1, most);
  const spacing = lineageView.spacing === "fit" ? fit : lineageView.spacing || Math.max(24, Math.min(170, fit));
  lineageView.drawn = spacing;
  const namesAll = spacing >= 62;
  const lanes = assignLanes(items, namesAll ? 0 : Math.ceil(110 / spacing));
  const flagRows = largest([...flagsOf.values()].map(list => list.length));
  const top = 18 + flagRows * 18;
  const [left, height] = [46, top + lanes * laneHeight + 26];
  const width = Math.max(scroll.clientWidth, left + most * spacing + 130);
  const x = item => left + item.column * spacing;
  const y = item => top + item.lane * laneHeight;
  const parts = [...timeTicks(items, x, height)];
  for (const item of items) parts.push(...edgesOf(item, x, y, spacing));
  const biggest = largest(checkpoints.map(one => one.storedBytes), 1);
  for (const item of items) {
    parts.push(item.isFold ? foldOf(item, x(item), y(item), spacing) : dotOf(item, x(item), y(item), spacing, biggest, namesAll));
  }
  svg.replaceChildren(...parts);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  scroll.setAttribute("aria-activedescendant", `node-${state.checkpoint}`);
  const chosen = items.find(item => item.nodes.includes(nodeOf.get(state.checkpoint)));
  const at = x(chosen);
  if (at < scroll.scrollLeft + 60 || at > scroll.scrollLeft + scroll.clientWidth - 140) scroll.scrollLeft = at - scroll.clientWidth * 0.7;
}

function timeTicks(items, x, height) {
  const parts = [];
  let [next, day, shown] = [-Infinity, "", ""];
  for (const item of items) {
    if (item.head.checkpoint === undefined || x(item) < next) continue;
    const time = stamp(item.head.time);
    const label = time.slice(0, 10) === day ? time.slice(11, 16) : time.slice(0, 10);
    if (label === shown) continue;
    [day, shown] = [time.slice(0, 10), label];
    next = x(item) + 84;
    parts.push(draw("line", {class: "tick", x1: x(item), x2: x(item), y1: 8, y2: height - 18}));
    parts.push(draw("text", {x: x(item), y: height - 5, "text-anchor": "middle"}, label));
  }
  return parts;
}

const laneColour = item => `var(--lane-${item.lane % 6})`;

function edgesOf(item, x, y, spacing) {
  if (!item.parent) {
    // A root whose parent is not shown, or not known any more.
    if (!item.head.isCut) return [];
    return [draw("path", {class: "edge gap", stroke: laneColour(item), d: `M${x(item) - 26} ${y(item)}H${x(item)}`})];
  }
  const [px, py, cx, cy] = [x(item.parent), y(item.parent), x(item), y(item)];
  const bend = Math.min(spacing, 40, cx - px);
  const path = py === cy ? `M${px} ${py}H${cx}`
    : `M${px} ${py}C${px + bend * 0.7} ${py} ${px + bend * 0.3} ${cy} ${px + bend} ${cy}H${cx}`;
  const gone = item.head.checkpoint === undefined || item.parent.tail.checkpoint === undefined;
  return [draw("path", {class: gone ? "edge gap" : "edge", stroke: laneColour(item), d: path})];
}

function hover(part, text) {
  part.addEventListener("pointermove", event => showTip(text(), event.clientX, event.clientY));
  part.addEventListener("pointerleave", hideTip);
}

function foldOf(item, x, y, spacing) {
  const count = item.nodes.length;
  const wide = Math.min(64, Math.max(14, spacing * 1.5));
  const shape = draw("rect", {x: x - wide / 2, y: y - 9, width: wide, height: 18, rx: 9, stroke: laneColour(item)});
  const part = draw("g", {class: "node fold"}, shape);
  const text = wide >= 30 ? `+${count}` : "⋯";
  part.append(draw("text", {x, y: y + 4, "text-anchor": "middle"}, text));
  const [first, last] = [checkpoints[item.head.checkpoint], checkpoints[item.tail.checkpoint]];
  const stored = sum(item.nodes.map(node => checkpoints[tree[node].checkpoint].storedBytes));
  hover(part, () => `${counted(count, "checkpoint")} in a row\n${first.name} … ${last.name}\n${moment(first.createdMilliseconds)}\n`
    + `${moment(last.createdMilliseconds)}\nstored ${bytes(stored)} together\nClick to unfold`);
  part.addEventListener("click", () => { hideTip(); item.nodes.forEach(node => lineageView.opened.add(node)); drawLineage(); });
  return part;
}

function dotOf(item, x, y, spacing, biggest, namesAll) {
  const node = item.head;
  const living = node.checkpoint !== undefined;
  const part = draw("g", {class: living ? "node" : "node dead"});
  hover(part, () => lineageLabel(node));
  if (!living) { part.append(draw("circle", {cx: x, cy: y, r: 4.5})); return part; }
  const one = checkpoints[node.checkpoint];
  const radius = Math.min(3 + 9 * Math.sqrt(one.storedBytes / biggest), Math.max(2.5, spacing * 0.45));
  const reach = draw("circle", {cx: x, cy: y, r: 14, fill: "transparent"});
  part.append(reach, draw("circle", {cx: x, cy: y, r: radius, fill: laneColour(item)}));
  part.id = `node-${node.checkpoint}`;
  part.setAttribute("role", "option");
  part.setAttribute("aria-label", one.name);
  part.setAttribute("aria-selected", node.checkpoint === state.checkpoint);
  const [chosen, other] = [node.checkpoint === state.checkpoint, node.checkpoint === state.compare];
  if (chosen || other) part.append(draw("circle", {class: other ? "ring other" : "ring", cx: x, cy: y, r: radius + 4}));
  if (namesAll) {
    part.append(draw("text", {x, y: y + radius + 16, "text-anchor": "middle"}, shorten(one.name, Math.floor(spacing / 6.4))));
  } else if (node.children.length === 0) {
    part.append(draw("text", {x: x + radius + 8, y: y + 4}, shorten(one.name, 15)));
  }
  (flagsOf.get(node.checkpoint) ?? []).forEach((name, row) => part.append(flagOf(name, x, y - radius - 8 - row * 18)));
  part.addEventListener("click", event => {
    hideTip();
    update(event.shiftKey ? {compare: node.checkpoint} : {checkpoint: node.checkpoint});
  });
  return part;
}

function flagOf(name, x, y) {
  const text = shorten(name, 18);
  const wide = [...text].length * 6.6 + 12;
  return draw("g", {class: "flag"}, draw("path", {d: `M${x - 6} ${y - 14}h${wide}v14h-${wide - 10}l-4 5l-4 -5h-2z`}),
    draw("text", {x: x - 6 + wide / 2, y: y - 3.5, "text-anchor": "middle"}, text));
}

function setUpLineage() {
  const branches = tree.filter(node => node.children.length === 0).length;
  const gone = tree.filter(node => node.checkpoint === undefined).length;
  byId("lineage-note").textContent = `${counted(checkpoints.length, "checkpoint")}, ${branches} ${branches === 1 ? "branch" : "branches"}`
    + (gone ? `, ${gone} deleted` : "") + (data.omittedCheckpoints ? `, ${whole(data.omittedCheckpoints)} older ones not shown` : "");
  const zoom = factor => { lineageView.spacing = Math.max(3, Math.min(160, lineageView.drawn * factor)); drawLineage(); };
  byId("zoom-in").addEventListener("click", () => zoom(1.5));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  byId("zoom-fit").addEventListener("click", () => { lineageView.spacing = "fit"; drawLineage(); });
  byId("collapse").addEventListener("change", event => {
    lineageView.collapse = event.target.checked;
    lineageView.opened.clear();
    drawLineage();
  });
  byId("lineage-scroll").addEventListener("keydown", lineageKeys);
  tableOnDemand("lineage-table", () => ({
    columns: [["Checkpoint"], ["Created"], ["Parent"], ["Names, labels"], ["Runs stored", true], ["Index stored", true],
      ["New pages", true], ["Unpacked", true]],
    rows: checkpoints.map((one, index) => [
      one.name, moment(one.createdMilliseconds), one.parent === undefined ? "–" : checkpoints[one.parent].name,
      [...flagsOf.get(index) ?? [], ...labelTexts(one)].join(", "), bytes(one.storedBytes), bytes(one.indexBytes),
      whole(one.newPages), bytes(one.logicalBytes),
    ]),
  }));
  views.push(drawLineage);
}

function lineageKeys(event) {
  const now = state.checkpoint;
  const child = checkpoints.findIndex(one => one.parent === now);
  const targets = {ArrowLeft: now - 1, ArrowRight: now + 1, ArrowUp: checkpoints[now].parent ?? -1, ArrowDown: child, Home: 0,
    End: checkpoints.length - 1};
  if (event.key === "c" || event.key === "C") { update({compare: now}); return; }
  if (!(event.key in targets)) return;
  event.preventDefault();
  const target = targets[event.key];
  if (target >= 0 && target < checkpoints.length) update({checkpoint: target});
}
