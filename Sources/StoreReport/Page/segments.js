// The segments of the store, each as a small vessel: filled with what is alive, then with what is dead.

const classNames = ["free", "runs", "index", "catalog"];
const segmentView = {};

function drawSegments() {
  const map = data.segments;
  const count = map.classes.length;
  const layout = width => {
    let size = 26;
    while (size > 3 && Math.ceil(count / Math.floor(width / size)) * size > 300) size -= 1;
    const columns = Math.max(1, Math.floor(width / size));
    return {size, columns, rows: Math.ceil(count / columns)};
  };
  paintCanvas(byId("segment-map"), width => layout(width).rows * layout(width).size, (context, width) => {
    const {size, columns, rows} = layout(width);
    Object.assign(segmentView, {size, columns, rows, count});
    const fills = classNames.map(name => variable(`--${name}`));
    const [dead, unwritten] = [variable("--dead"), variable("--unwritten")];
    const full = data.store.segmentBytes * map.segmentsPerCell;
    const inner = size - (size >= 5 ? 1 : 0.5);
    for (let index = 0; index < count; index += 1) {
      const [x, y] = [index % columns * size, Math.floor(index / columns) * size];
      const used = map.classes[index] !== 0;
      context.fillStyle = used ? unwritten : fills[0];
      context.fillRect(x, y, inner, inner);
      if (!used) continue;
      const [live, written] = [map.liveBytes[index] / full * inner, map.committedBytes[index] / full * inner];
      context.fillStyle = dead;
      context.fillRect(x, y + inner - written, inner, written);
      context.fillStyle = fills[map.classes[index]];
      context.fillRect(x, y + inner - live, inner, live);
    }
  });
}

function describeSegment(index) {
  const map = data.segments;
  const each = map.segmentsPerCell;
  const last = Math.min(data.store.segmentCount, (index + 1) * each) - 1;
  const where = each === 1 ? `segment ${whole(index)}` : `segments ${whole(index * each)} – ${whole(last)}`;
  if (map.classes[index] === 0) return `${where}\nfree`;
  const [written, live] = [map.committedBytes[index], map.liveBytes[index]];
  const writer = map.writers[index];
  return `${where}: ${classNames[map.classes[index]]}\nwritten ${bytes(written)} of ${bytes(data.store.segmentBytes * each)}\n`
    + `alive ${bytes(live)} (${percent(live / Math.max(1, written))}), dead ${bytes(written - live)}`
    + (writer >= 0 ? `\nlast written by ${checkpoints[writer].name}` : "");
}

function segmentFigures() {
  const map = data.segments;
  return [1, 2, 3].map(kind => {
    const members = [...map.classes.keys()].filter(index => map.classes[index] === kind);
    const [live, written] = [sum(members.map(index => map.liveBytes[index])), sum(members.map(index => map.committedBytes[index]))];
    return {kind, count: members.length, live, written};
  });
}

function setUpSegments() {
  const [store, map] = [data.store, data.segments];
  byId("segments-note").textContent = `${counted(store.segmentCount, "segment")} of ${bytes(store.segmentBytes)}, `
    + `${whole(store.usedSegments)} used, ${whole(store.reserveSegments)} in reserve`
    + (map.segmentsPerCell > 1 ? `; a cell is ${whole(map.segmentsPerCell)} of them` : "")
    + `; compacting would give back about ${bytes(store.compactionGainBytes)}`;
  byId("segment-map").setAttribute("aria-label", byId("segments-note").textContent);
  const cell = map.segmentsPerCell === 1 ? "Segments" : "Cells";
  fillTable(byId("class-table"), [["Class"], [cell, true], ["Alive", true], ["Dead", true], ["Alive of what is written", true]],
    segmentFigures().map(one => [classNames[one.kind], whole(one.count), bytes(one.live), bytes(one.written - one.live),
      one.written ? percent(one.live / one.written) : "–"]));
  tableOnDemand("segment-table", () => ({
    columns: [[cell], ["Class"], ["Written", true], ["Alive", true], ["Dead", true], ["Last written by"]],
    rows: [...map.classes.keys()].filter(index => map.committedBytes[index] > map.liveBytes[index])
      .sort((a, b) => map.committedBytes[b] - map.liveBytes[b] - map.committedBytes[a] + map.liveBytes[a]).slice(0, 50)
      .map(index => [
        whole(index * map.segmentsPerCell), classNames[map.classes[index]], bytes(map.committedBytes[index]), bytes(map.liveBytes[index]),
        bytes(map.committedBytes[index] - map.liveBytes[index]), map.writers[index] >= 0 ? checkpoints[map.writers[index]].name : "–",
      ]),
  }));
  views.push(changes => {
    if (changes && Object.keys(changes).length) return;
    drawSegments();
    byId("segment-legend").replaceChildren(...["runs", "index", "catalog"].map(name => swatch(variable(`--${name}`), `${name}, alive`)),
      swatch(variable("--dead"), "dead"), swatch(variable("--unwritten"), "not written yet"), swatch(variable("--free"), "free"));
  });
  explore(byId("segment-map"), byId("segment-cell"), {
    find: (x, y) => {
      const [column, row] = [Math.floor(x / segmentView.size), Math.floor(y / segmentView.size)];
      const index = row * segmentView.columns + column;
      return column >= 0 && column < segmentView.columns && row >= 0 && index < segmentView.count ? index : null;
    },
    move: (place, dx, dy) => Math.max(0, Math.min(segmentView.count - 1, (place ?? -dx) + dx + dy * segmentView.columns)),
    say: describeSegment,
  });
}
