// Heat over time: checkpoints downwards, addresses to the right; where the same places are written again and again.

const heatView = {};
const stripHeight = 46;
const heatGutter = 124;

function heatLine() {
  if (state.allBranches) return checkpoints.map((_, index) => index);
  return line(state.checkpoint).reverse();
}

// Changed pages by row and column, and the sum of each column.
function heatFigures(width) {
  const [layout, members] = [data.regions[state.region], heatLine().filter(one => regionOf(one, state.region))];
  const perColumn = Math.ceil(layout.cellCount / Math.max(16, Math.floor((width - heatGutter) / 4)));
  const columns = Math.ceil(layout.cellCount / perColumn);
  const perRow = Math.ceil(members.length / 400);
  const rows = Math.ceil(members.length / perRow);
  const grid = Array.from({length: rows}, () => new Float64Array(columns));
  const total = new Float64Array(columns);
  members.forEach((member, index) => {
    const figures = regionOf(member, state.region);
    // A whole map is no change: there was nothing to compare it with.
    if (!figures.hasBase) return;
    const row = grid[Math.floor(index / perRow)];
    figures.cells.cells.forEach((cell, at) => {
      const column = Math.floor(cell / perColumn);
      row[column] += figures.cells.changedPages[at];
      total[column] += figures.cells.changedPages[at];
    });
  });
  return {members, perColumn, columns, perRow, rows, grid, total, pages: perColumn * layout.pagesPerCell};
}

function drawHeat() {
  const box = byId("heat-map");
  const side = figures => Math.max(1.25, Math.min(20, 460 / Math.max(1, figures.rows)));
  let figures = null;
  paintCanvas(box, width => {
    figures = heatFigures(width);
    return stripHeight + 10 + figures.rows * side(figures) + 22;
  }, (context, width) => {
    const [across, down] = [(width - heatGutter) / figures.columns, side(figures)];
    Object.assign(heatView, figures, {across, down});
    const colour = ramp("heat");
    const most = largest(figures.total, 1);
    figures.total.forEach((value, column) => {
      const height = value / most * stripHeight;
      context.fillStyle = colour(Math.sqrt(value / most));
      context.fillRect(heatGutter + column * across, stripHeight - height, Math.max(1, across - (across > 4 ? 1 : 0)), height);
    });
    const top = stripHeight + 10;
    const [none, whole] = [variable("--cell-none"), variable("--cell-same")];
    const inset = down >= 5 ? 1 : 0;
    figures.grid.forEach((row, index) => {
      const isBase = figures.perRow === 1 && !regionOf(figures.members[index], state.region).hasBase;
      context.fillStyle = isBase ? whole : none;
      context.fillRect(heatGutter, top + index * down, width - heatGutter, down - inset);
      row.forEach((value, column) => {
        if (value === 0) return;
        context.fillStyle = colour(Math.sqrt(Math.min(1, value / figures.pages / figures.perRow)));
        context.fillRect(heatGutter + column * across, top + index * down, Math.max(1, across), down - inset);
      });
    });
    heatLabels(context, figures, top, down, across, width);
  });
  noteHeat(figures);
}

function heatLabels(context, figures, top, down, across, width) {
  context.fillStyle = variable("--soft");
  context.textAlign = "right";
  context.fillText("sum of changes", heatGutter - 8, stripHeight / 2 + 4);
  const every = Math.ceil(18 / down);
  for (let row = 0; row < figures.rows; row += every) {
    context.fillText(shorten(checkpoints[figures.members[row * figures.perRow]].name, 17), heatGutter - 8, top + (row + 0.5) * down + 0.5);
  }
  const bottom = top + figures.rows * down + 12;
  for (let part = 0; part <= 6; part += 1) {
    context.textAlign = part === 0 ? "left" : part === 6 ? "right" : "center";
    const column = Math.min(figures.columns, Math.round(part / 6 * figures.columns));
    context.fillText(address(column * figures.pages), heatGutter + (width - heatGutter) * part / 6, bottom);
  }
  const chosen = figures.members.indexOf(state.checkpoint);
  if (chosen < 0) return;
  context.strokeStyle = variable("--mark");
  context.lineWidth = 1.5;
  context.strokeRect(heatGutter - 1, top + Math.floor(chosen / figures.perRow) * down - 1, width - heatGutter + 1, Math.max(down, 3) + 1);
}

function noteHeat(figures) {
  const hot = figures.total.filter(value => value > 0).length;
  byId("heat-note").textContent = `${data.regions[state.region].name}: `
    + `${counted(figures.members.length, "checkpoint")} ${state.allBranches ? "of all branches" : "up to the chosen one"}, `
    + `the oldest on top; ${percent(hot / figures.columns)} of the addresses ever changed`;
  byId("heat-map").setAttribute("aria-label", `Changes by address and checkpoint. ${byId("heat-note").textContent}`);
  byId("heat-legend").replaceChildren(rampKey(rampColours("heat"), "few pages changed", "all"),
    swatch(variable("--cell-none"), "unchanged"), swatch(variable("--cell-same"), "whole map, nothing to compare with"));
}

const heatRange = column => `${address(column * heatView.pages)} – ${address((column + 1) * heatView.pages)}`;

const heatCell = ({row, column}) => {
  const {members, perRow, grid} = heatView;
  const [first, last] = [members[row * perRow], members[Math.min(members.length, (row + 1) * perRow) - 1]];
  const who = first === last ? checkpoints[first].name : `${checkpoints[first].name} … ${checkpoints[last].name}`;
  return `${who}\n${heatRange(column)}\n${counted(grid[row][column], "page change")}`;
};

function setUpHeat() {
  byId("heat-all").addEventListener("change", event => update({allBranches: event.target.checked}));
  const refill = tableOnDemand("heat-table", () => ({
    columns: [["Addresses"], ["Page changes", true], ["Checkpoints that changed it", true]],
    rows: [...heatView.total.keys()].filter(column => heatView.total[column] > 0)
      .sort((a, b) => heatView.total[b] - heatView.total[a]).slice(0, 50).map(column => [
        heatRange(column), whole(heatView.total[column]), whole(heatView.grid.filter(row => row[column] > 0).length),
      ]),
  }));
  views.push(() => { drawHeat(); refill(); });
  explore(byId("heat-map"), byId("heat-cell"), {
    find: (x, y) => {
      const [column, row] = [Math.floor((x - heatGutter) / heatView.across), Math.floor((y - stripHeight - 10) / heatView.down)];
      return column >= 0 && column < heatView.columns && row >= 0 && row < heatView.rows ? {row, column} : null;
    },
    move: (place, dx, dy) => {
      const now = place ?? {row: 0, column: 0};
      const within = (value, end) => Math.max(0, Math.min(end - 1, value));
      return {row: within(now.row + dy, heatView.rows), column: within(now.column + dx, heatView.columns)};
    },
    say: heatCell, choose: place => update({checkpoint: heatView.members[place.row * heatView.perRow]}),
  });
}
