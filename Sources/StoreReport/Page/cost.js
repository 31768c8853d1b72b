// What checkpoints cost: three charts over the same checkpoints in the order of time.

const axisWidth = 66;
const chartHeight = 170;
const costOf = one => one.storedBytes + one.indexBytes;

// Round steps of an axis up to `most`: powers of `base`, so that sizes in KiB and MiB are round too.
function axisSteps(most, base) {
  const rough = most / 4;
  const power = base ** Math.floor(Math.log(Math.max(rough, 1e-9)) / Math.log(base));
  const steps = [];
  for (let value = 0; value <= most * 1.0001; value += power) steps.push(value);
  const every = [1, 2, 5, 10, 20].find(count => steps.length / count <= 6) ?? 40;
  return steps.filter((_, index) => index % every === 0);
}

// Draws axes, then `paint(context, x, y, width of a checkpoint)`.
function chart(id, {most, least = 0, isLog = false, base = 2, label, paint}) {
  paintCanvas(byId(id), () => chartHeight, (context, width, height) => {
    const [top, bottom] = [8, height - 20];
    const place = isLog ? value => Math.log(Math.max(value, least) / least) / Math.log(most / least) : value => value / most;
    const y = value => bottom - Math.max(0, Math.min(1, place(value))) * (bottom - top);
    const step = (width - axisWidth - 6) / checkpoints.length;
    context.textAlign = "right";
    const steps = isLog ? logSteps(least, most) : axisSteps(most, base);
    for (const value of steps) {
      context.fillStyle = variable("--grid");
      context.fillRect(axisWidth, Math.round(y(value)), width - axisWidth, 1);
      context.fillStyle = variable("--soft");
      context.fillText(label(value), axisWidth - 8, y(value));
    }
    paint(context, index => axisWidth + index * step, y, step);
    context.fillStyle = variable("--soft");
    const day = index => stamp(checkpoints[index].createdMilliseconds).slice(0, 10);
    context.textAlign = "left";
    context.fillText(day(0), axisWidth, height - 7);
    context.textAlign = "right";
    if (checkpoints.length > 1) context.fillText(day(checkpoints.length - 1), width, height - 7);
    context.fillStyle = variable("--mark");
    context.fillRect(axisWidth + (state.checkpoint + 0.5) * step - 0.75, top, 1.5, bottom - top);
  });
}

function logSteps(least, most) {
  const steps = [];
  for (let value = least; value <= most; value *= 2) steps.push(value);
  const every = Math.ceil(steps.length / 5);
  return steps.filter((_, index) => index % every === 0);
}

function drawCost() {
  const costs = checkpoints.map(costOf);
  const sorted = costs.filter(cost => cost > 0).sort((a, b) => a - b);
  const [most, middle] = [sorted.at(-1) ?? 1, sorted[Math.floor(sorted.length / 2)] ?? 1];
  // The first checkpoint of a machine stores all of it: on a linear scale the others would not be seen.
  const isLog = most > middle * 20;
  const least = 2 ** Math.floor(Math.log2(Math.max(1, (sorted[0] ?? 1) * 0.7)));
  const [runs, index, soft] = [variable("--runs"), variable("--index"), variable("--dead")];
  chart("cost-each", {most, least, isLog, label: value => bytes(Math.round(value)), paint: (context, x, y, step) => {
    const wide = Math.max(0.6, Math.min(64, step - (step > 4 ? 1 : 0)));
    const aside = Math.max(0, step - wide - 1) / 2;
    const floor = y(isLog ? least : 0);
    checkpoints.forEach((one, at) => {
      context.fillStyle = index;
      context.fillRect(x(at) + aside, y(costOf(one)), wide, floor - y(costOf(one)));
      context.fillStyle = runs;
      // The part of runs is drawn in proportion, whatever the scale.
      const share = one.storedBytes / Math.max(1, costOf(one));
      context.fillRect(x(at) + aside, floor - (floor - y(costOf(one))) * share, wide, (floor - y(costOf(one))) * share);
    });
  }});
  const sums = costs.map((() => { let total = 0; return cost => (total += cost); })());
  const raw = checkpoints.map((() => { let total = 0; return one => (total += one.newPages * pageBytes); })());
  chart("cost-sum", {most: Math.max(raw.at(-1), sums.at(-1), 1), label: value => bytes(Math.round(value)), paint: (context, x, y, step) => {
    // From the middle of the first checkpoint to that of the last one; a single one gets the whole width.
    const [from, to] = checkpoints.length === 1 ? [x(0), x(1)] : [x(0) + step / 2, x(checkpoints.length - 1) + step / 2];
    const path = values => {
      context.beginPath();
      context.moveTo(from, y(values[0]));
      values.forEach((value, at) => { if (values.length > 1) context.lineTo(x(at) + step / 2, y(value)); });
      context.lineTo(to, y(values.at(-1)));
    };
    path(raw);
    context.strokeStyle = soft;
    context.lineWidth = 2;
    context.stroke();
    path(sums);
    context.stroke();
    context.lineTo(to, y(0));
    context.lineTo(from, y(0));
    context.globalAlpha = 0.35;
    context.fillStyle = runs;
    context.fill();
    context.globalAlpha = 1;
    path(sums);
    context.strokeStyle = runs;
    context.stroke();
  }});
  const ratios = checkpoints.map(one => (one.newPages ? costOf(one) / (one.newPages * pageBytes) : null));
  const worst = largest(ratios.map(value => value ?? 0), 0.1);
  chart("cost-ratio", {base: 10, most: worst, label: value => value.toFixed(2), paint: (context, x, y, step) => {
    context.fillStyle = index;
    ratios.forEach((value, at) => {
      if (value === null) return;
      const size = Math.max(1.5, Math.min(4, step / 2));
      context.beginPath();
      context.arc(x(at) + step / 2, y(value), size, 0, 2 * Math.PI);
      context.fill();
    });
  }});
  noteCost(isLog, sums.at(-1), raw.at(-1), [runs, index, soft]);
}

function noteCost(isLog, total, raw, [runs, index, soft]) {
  const store = data.store;
  const live = store.runBytes + store.indexBytes + store.catalogBytes;
  const each = raw ? ` (${(total / raw).toFixed(2)} for each byte)` : "";
  byId("cost-note").textContent = `${bytes(total)} stored for ${bytes(raw)} of new pages${each}; `
    + `used space is ${live ? ((live + store.deadBytes) / live).toFixed(2) : "–"} times what is live`;
  byId("cost-legend").replaceChildren(swatch(runs, "page runs"), swatch(index, "index"), swatch(soft, "new pages, unpacked"),
    ...(isLog ? [make("li", {}, make("small", {}, "left chart: logarithmic scale"))] : []));
  for (const id of ["cost-each", "cost-sum", "cost-ratio"]) {
    const title = byId(id).closest("figure").querySelector("figcaption").textContent;
    byId(id).setAttribute("aria-label", `${title}. ${byId("cost-note").textContent}`);
  }
}

function setUpCost() {
  views.push(drawCost);
  for (const id of ["cost-each", "cost-sum", "cost-ratio"]) {
    const last = checkpoints.length - 1;
    explore(byId(id), byId("cost-cell"), {
      find: x => {
        const index = Math.floor((x - axisWidth) / ((byId(id).clientWidth - axisWidth - 6) / checkpoints.length));
        return index >= 0 && index <= last ? index : null;
      },
      move: (place, dx) => Math.max(0, Math.min(last, (place ?? state.checkpoint) + dx)),
      say: index => {
        const one = checkpoints[index];
        return `${one.name}\n${moment(one.createdMilliseconds)}\nruns ${bytes(one.storedBytes)}, index ${bytes(one.indexBytes)}\n`
          + `${counted(one.newPages, "new page")} (${bytes(one.newPages * pageBytes)})`;
      },
      choose: index => update({checkpoint: index}),
    });
  }
}
