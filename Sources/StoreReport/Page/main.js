// The head of the page, the chosen checkpoint, and the start of everything.

function drawHead() {
  const store = data.store;
  byId("medium").textContent = store.medium;
  byId("subtitle").textContent = `${store.kind} · store ${store.uuid} · generation ${whole(store.generation)}`
    + (store.features.length ? ` · features: ${store.features.join(", ")}` : "");
  const live = store.runBytes + store.indexBytes + store.catalogBytes;
  const used = 1 - (store.freeBytes + store.reserveBytes) / Math.max(1, store.segmentCount * store.segmentBytes);
  const tiles = [
    [whole(store.checkpointCount), store.checkpointCount === 1 ? "checkpoint" : "checkpoints"],
    [bytes(store.logicalBytes), "of memory and disks, unpacked"],
    [bytes(live), "live in the store"],
    [live && store.logicalBytes ? ratio(store.logicalBytes / live) : "–", "unpacked to live"],
    [percent(used), `of ${bytes(store.sizeBytes)} in use`],
    [bytes(store.compactionGainBytes), "to be had by compacting"],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([value, name]) => make("div", {class: "tile"}, make("b", {}, value), make("span", {}, name))));
  drawSpace();
  byId("footer").textContent = `Made ${moment(data.madeMilliseconds)} from generation ${whole(store.generation)} by ckstore report. `
    + "Everything shown comes from the store's index; no page was read.";
}

function drawSpace() {
  const store = data.store;
  const parts = [
    ["runs", "page runs", store.runBytes], ["index", "index", store.indexBytes], ["catalog", "catalog", store.catalogBytes],
    ["dead", "dead", store.deadBytes], ["unwritten", "not written yet in used segments", store.unwrittenBytes],
    ["free", "free", store.freeBytes], ["reserve", "reserve for deleting", store.reserveBytes],
  ].filter(([, , size]) => size > 0);
  const total = sum(parts.map(([, , size]) => size));
  byId("space-bar").replaceChildren(...parts.map(([name, title, size]) => {
    const part = make("span");
    part.style.background = `var(--${name})`;
    part.style.flex = `${size / total} 1 0`;
    hover(part, () => `${title}\n${bytes(size)} (${percent(size / total)})`);
    return part;
  }));
  byId("space-bar").setAttribute("aria-label", parts.map(([, title, size]) => `${title} ${bytes(size)}`).join(", "));
  byId("space-legend").replaceChildren(
    ...parts.map(([name, title, size]) => swatch(`var(--${name})`, title, `${bytes(size)}, ${percent(size / total)}`)));
  byId("space-note").textContent = `${bytes(store.sizeBytes)} in ${counted(store.segmentCount, "segment")} of `
    + `${bytes(store.segmentBytes)}; ${bytes(store.sharedBytes)} of what is live are shared by several checkpoints`;
}

function drawChosen() {
  const one = checkpoints[state.checkpoint];
  byId("chosen-name").textContent = one.name;
  byId("chosen-chips").replaceChildren(...(flagsOf.get(state.checkpoint) ?? []).map(name => make("span", {class: "chip flag"}, name)),
    ...labelTexts(one).map(text => make("span", {class: "chip"}, text)));
  const node = tree[nodeOf.get(state.checkpoint)];
  const missing = node.isCut ? "older, not shown" : node.parent !== undefined ? "deleted" : "none";
  const parent = one.parent !== undefined ? checkpoints[one.parent].name : missing;
  const children = checkpoints.filter(other => other.parent === state.checkpoint).map(other => other.name);
  const facts = [
    ["Created", moment(one.createdMilliseconds)], ["Parent", parent],
    ["Children", [...children.slice(0, 3), ...(children.length > 3 ? [`${children.length - 3} more`] : [])].join(", ") || "none"],
    ["Stored by it", `${bytes(one.storedBytes)} in runs, ${bytes(one.indexBytes)} of index`],
    ["New pages", `${whole(one.newPages)} (${bytes(one.newPages * pageBytes)})`], ["Unpacked", bytes(one.logicalBytes)],
    ["Generation", whole(one.generation)], ["Id", one.id], ...(one.group ? [["Group", one.group]] : []),
  ];
  byId("chosen-facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const rows = fillTable(byId("region-table"), [["Region"], ["Kind"], ["Size", true], ["Content"], ["Compression", true], ["Stored", true],
    ["Written by it", true], ["From ancestors", true], ["Changed pages", true]], one.regions.map(regionRow));
  rows.forEach((row, index) => {
    row.classList.add("link");
    row.classList.toggle("chosen", one.regions[index].region === state.region);
    row.addEventListener("click", () => update({region: one.regions[index].region}));
  });
}

function regionRow(figures) {
  const layout = data.regions[figures.region];
  const pages = Math.max(1, Math.ceil(figures.lengthBytes / pageBytes));
  const fill = make("i");
  fill.style.width = `${figures.nonZeroPages / pages * 100}%`;
  const content = make("span", {}, make("span", {class: "meter"}, fill), `${percent(figures.nonZeroPages / pages)} not zero`);
  return [layout.name, layout.kind, bytes(figures.lengthBytes), content, ratio(figures.nonZeroPages * pageBytes / figures.storedBytes),
    bytes(figures.storedBytes), bytes(figures.writtenBytes), bytes(figures.storedBytes - figures.writtenBytes),
    `${whole(figures.changedPages)} (${percent(figures.changedPages / pages)})`];
}

function setUpControls() {
  const names = () => checkpoints.map((one, index) => make("option", {value: index}, shorten(one.name, 60))).reverse();
  const [checkpoint, compare, region] = [byId("pick-checkpoint"), byId("pick-compare"), byId("pick-region")];
  checkpoint.append(...names());
  compare.append(make("option", {value: ""}, "its parent"), ...names());
  region.append(...data.regions.map((one, index) => make("option", {value: index}, `${shorten(one.name, 50)} (${one.kind})`)));
  checkpoint.addEventListener("change", () => update({checkpoint: Number(checkpoint.value)}));
  compare.addEventListener("change", () => update({compare: compare.value === "" ? null : Number(compare.value)}));
  region.addEventListener("change", () => update({region: Number(region.value)}));
  views.push(() => {
    checkpoint.value = state.checkpoint;
    compare.value = state.compare ?? "";
    region.value = state.region;
  }, drawChosen);
}

function start() {
  drawHead();
  if (checkpoints.length) {
    byId("main").hidden = false;
    setUpControls();
    setUpLineage();
    // A checkpoint may have labels only.
    const hasMaps = data.regions.length > 0;
    byId("where").hidden = !hasMaps;
    byId("heat").hidden = !hasMaps || checkpoints.length < 2;
    if (hasMaps) setUpWhere();
    if (!byId("heat").hidden) setUpHeat();
    setUpCost();
    fromAddress();
  } else {
    byId("empty").hidden = false;
  }
  setUpSegments();
  const redraw = () => views.forEach(view => view({}));
  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawHead(); redraw(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  addEventListener("hashchange", () => { if (checkpoints.length) { fromAddress(); redraw(); } });
  addEventListener("beforeprint", () => { lineageView.spacing = "fit"; if (checkpoints.length) drawLineage(); });
}

// Tests, and people who wonder, see here whether the script came to its end.
addEventListener("error", event => { document.body.dataset.error = event.message; });
start();
document.body.dataset.ready = "yes";
