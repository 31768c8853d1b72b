// Maps of regions: what is in each cell of a checkpoint, put together from the changes along its lineage, and drawn.

const regionOf = (checkpoint, region) => checkpoints[checkpoint].regions.find(one => one.region === region);

// The checkpoint and its ancestors, the newest first.
function line(checkpoint) {
  const found = [];
  for (let at = checkpoint; at !== undefined; at = checkpoints[at].parent) found.push(at);
  return found;
}

// MARK: what is where

const knownMaps = new Map();

// For each cell of a region: pages that are not zero, bytes of their runs, the sum of their writers' depths, and the depth of the last
// checkpoint that changed any of them. Null: it has no such region.
function mapOf(checkpoint, region) {
  if (!regionOf(checkpoint, region)) return null;
  const key = `${checkpoint} ${region}`;
  if (knownMaps.has(key)) return knownMaps.get(key);
  const cells = data.regions[region].cellCount;
  const [nonZeroPages, storedBytes, writerDepths, lastDepth] = Array.from({length: 4}, () => new Float64Array(cells));
  const map = {nonZeroPages, storedBytes, writerDepths, lastDepth};
  const chain = [];
  for (const at of line(checkpoint)) {
    const figures = regionOf(at, region);
    chain.push({changes: figures.cells, depth: checkpoints[at].depth});
    if (!figures.hasBase) break;
  }
  for (const {changes, depth} of chain.reverse()) {
    for (let index = 0; index < changes.cells.length; index += 1) {
      const cell = changes.cells[index];
      map.nonZeroPages[cell] += changes.nonZeroPages[index];
      map.storedBytes[cell] += changes.storedBytes[index];
      map.writerDepths[cell] += changes.writerDepths[index];
      if (changes.changedPages[index] > 0) map.lastDepth[cell] = depth;
    }
  }
  if (knownMaps.size > 16) knownMaps.clear();
  knownMaps.set(key, map);
  return map;
}

// The checkpoints whose changes lie between two; null when they have no common ancestor.
function between(a, b) {
  const above = new Set(line(a));
  const common = line(b).find(one => above.has(one));
  if (common === undefined) return null;
  const upTo = list => list.slice(0, list.indexOf(common));
  return [...upTo(line(a)), ...upTo(line(b))];
}

// How many pages of each cell changed on the way between two checkpoints; a page that changed several times counts as often. Null: can't
// be told.
function changesOf(checkpoint, other, region) {
  const changed = new Float64Array(data.regions[region].cellCount);
  const steps = other === null ? [checkpoint] : between(checkpoint, other);
  if (!steps) return null;
  for (const step of steps) {
    const figures = regionOf(step, region);
    if (!figures) continue;
    figures.cells.cells.forEach((cell, index) => { changed[cell] += figures.cells.changedPages[index]; });
  }
  return changed;
}

// MARK: colours of cells

const colours = {
  changed: {title: "Changed", ramp: "heat"}, age: {title: "Age", ramp: "age"},
  ratio: {title: "Compression", ramp: "ratio"}, full: {title: "Content", ramp: "full"},
};

// From everything about a cell to 0...1 in the ramp; null: nothing to show.
function cellShare(colour, cell) {
  switch (colour) {
  case "changed": return cell.changed > 0 ? Math.sqrt(Math.min(1, cell.changed / cell.pages)) : null;
  case "age": return cell.nonZero > 0 ? Math.min(1, Math.log2(1 + cell.last) / Math.log2(1 + Math.max(1, cell.depth))) : null;
  case "ratio": return cell.nonZero > 0 ? Math.min(1, Math.max(0, Math.log2(cell.ratio) / 4)) : null;
  default: return cell.nonZero > 0 ? cell.nonZero / cell.pages : null;
  }
}

// A reader of the chosen region's cells.
function cellReader(checkpoint, other, region) {
  const figures = regionOf(checkpoint, region);
  if (!figures) return null;
  const [layout, map, changed] = [data.regions[region], mapOf(checkpoint, region), changesOf(checkpoint, other, region)];
  const total = Math.ceil(figures.lengthBytes / pageBytes);
  const depth = checkpoints[checkpoint].depth;
  const count = Math.max(1, Math.ceil(total / layout.pagesPerCell));
  return {count, total, knowsChanges: changed !== null, at: index => {
    const first = index * layout.pagesPerCell;
    const pages = Math.max(1, Math.min(layout.pagesPerCell, total - first));
    const [nonZero, stored] = [map.nonZeroPages[index], map.storedBytes[index]];
    return {first, pages, nonZero, stored, depth, changed: changed ? changed[index] : 0,
      last: Math.max(0, depth - map.lastDepth[index]), age: nonZero ? Math.max(0, depth - map.writerDepths[index] / nonZero) : 0,
      ratio: stored > 0 ? nonZero * pageBytes / stored : 1};
  }};
}

// MARK: the map

const gutter = 86;
const whereView = {};

const ago = count => (count === 0 ? "by this checkpoint" : `${counted(count, "checkpoint")} ago`);

function describeCell(cell) {
  const range = `${address(cell.first)} – ${address(cell.first + cell.pages)} (${counted(cell.pages, "page")})`;
  if (cell.nonZero === 0 && cell.changed === 0) return `${range}\nall zero`;
  return `${range}\n${counted(cell.changed, "change")} · ${whole(cell.nonZero)} not zero\nlast written ${ago(cell.last)}, `
    + `on average ${cell.age.toFixed(1)} checkpoints ago\nstored ${bytes(Math.round(cell.stored))}, ${ratio(cell.ratio)}`;
}

function drawWhere() {
  const reader = cellReader(state.checkpoint, state.compare, state.region);
  const box = byId("where-map");
  Object.assign(whereView, {reader});
  noteWhere(reader);
  box.hidden = !reader;
  if (!reader) return;
  // About four times as wide as high, whatever the number of cells; wide enough to be hit with a pointer.
  const columns = Math.min(reader.count, 2 ** Math.min(7, Math.ceil(Math.log2(Math.max(1, Math.sqrt(reader.count * 4))))));
  const rows = Math.ceil(reader.count / columns);
  const side = width => Math.min(24, (width - gutter) / columns);
  paintCanvas(box, width => rows * side(width) + 2, (context, width) => {
    const size = side(width);
    Object.assign(whereView, {columns, rows, size});
    const colour = ramp(colours[state.colour].ramp);
    const [none, same] = [variable("--cell-none"), variable("--cell-same")];
    const inset = size >= 6 ? 1 : 0;
    for (let index = 0; index < reader.count; index += 1) {
      const cell = reader.at(index);
      const share = cellShare(state.colour, cell);
      context.fillStyle = share !== null ? colour(share) : cell.nonZero > 0 ? same : none;
      context.fillRect(gutter + index % columns * size, Math.floor(index / columns) * size, size - inset, size - inset);
    }
    context.fillStyle = variable("--soft");
    context.textAlign = "right";
    const every = Math.ceil(16 / size);
    for (let row = 0; row < rows; row += every) {
      const first = row * columns * data.regions[state.region].pagesPerCell;
      context.fillText(address(first), gutter - 8, row * size + Math.max(size, 12) / 2);
    }
  });
}

function noteWhere(reader) {
  const [one, layout] = [checkpoints[state.checkpoint], data.regions[state.region]];
  const legend = byId("where-legend");
  if (!reader) {
    byId("where-note").textContent = `${one.name} has no region ${layout.name}.`;
    return legend.replaceChildren();
  }
  const against = state.compare !== null ? `between ${checkpoints[state.compare].name} and ${one.name}, counted on the way`
    : one.parent === undefined ? "since there was nothing: no ancestor of it is shown" : `since ${checkpoints[one.parent].name}`;
  let [changed, cells] = [0, 0];
  for (let index = 0; index < reader.count; index += 1) {
    const cell = reader.at(index);
    changed += cell.changed;
    if (cell.changed) cells += 1;
  }
  byId("where-note").textContent = `${layout.name} of ${one.name}: `
    + (reader.knowsChanges ? `${counted(changed, "page change")} in ${whole(cells)} of ${counted(reader.count, "cell")}, ${against}. `
      : "the two have no common ancestor in this report; `ckstore diff` compares their pages. ")
    + `A cell is ${counted(layout.pagesPerCell, "page")} (${bytes(layout.pagesPerCell * pageBytes)}) of `
    + `${bytes(reader.total * pageBytes)}.`;
  byId("where-map").setAttribute("aria-label", byId("where-note").textContent);
  const depth = one.depth;
  const ends = {changed: ["few pages changed", "all"], age: ["last written by this checkpoint", ago(Math.max(1, depth))],
    ratio: ["1 : 1", "16 : 1 and more"], full: ["few pages not zero", "all"]}[state.colour];
  legend.replaceChildren(rampKey(rampColours(colours[state.colour].ramp), ...ends),
    ...(state.colour === "changed" ? [swatch(variable("--cell-same"), "unchanged")] : []), swatch(variable("--cell-none"), "zero"));
}

function setUpWhere() {
  const buttons = Object.entries(colours).map(([name, {title}]) => {
    const button = make("button", {type: "button", role: "radio"}, title);
    button.addEventListener("click", () => update({colour: name}));
    return [name, button];
  });
  byId("colours").append(...buttons.map(([, button]) => button));
  const refill = tableOnDemand("where-table", whereRows);
  views.push(() => {
    for (const [name, button] of buttons) button.setAttribute("aria-checked", name === state.colour);
    drawWhere();
    refill();
  });
  explore(byId("where-map"), byId("where-cell"), {
    find: (x, y) => {
      const {columns, rows, size, reader} = whereView;
      const [column, row] = [Math.floor((x - gutter) / size), Math.floor(y / size)];
      const index = row * columns + column;
      return reader && column >= 0 && column < columns && row >= 0 && row < rows && index < reader.count ? index : null;
    },
    move: (place, dx, dy) => Math.max(0, Math.min(whereView.reader.count - 1, (place ?? -dx) + dx + dy * whereView.columns)),
    say: index => describeCell(whereView.reader.at(index)),
  });
}

// The map in at most 64 rows.
function whereRows() {
  const {reader} = whereView;
  const columns = [
    ["Addresses"], ["Pages", true], ["Changes", true], ["Not zero", true], ["Mean age, checkpoints", true], ["Stored", true],
    ["Ratio", true],
  ];
  if (!reader) return {columns, rows: []};
  const step = Math.ceil(reader.count / 64);
  const rows = [];
  for (let start = 0; start < reader.count; start += step) {
    const cells = Array.from({length: Math.min(step, reader.count - start)}, (_, index) => reader.at(start + index));
    const total = key => sum(cells.map(cell => cell[key]));
    const [pages, nonZero, stored] = [total("pages"), total("nonZero"), total("stored")];
    const age = nonZero ? sum(cells.map(cell => cell.age * cell.nonZero)) / nonZero : null;
    rows.push([`${address(cells[0].first)} – ${address(cells[0].first + pages)}`, whole(pages), whole(total("changed")), whole(nonZero),
      age === null ? "–" : age.toFixed(1), bytes(Math.round(stored)), nonZero ? ratio(nonZero * pageBytes / stored) : "–"]);
  }
  return {columns, rows};
}
