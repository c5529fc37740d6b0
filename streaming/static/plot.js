/** Small canvas drawings for the dashboard: lines over time, and a map of pages. Colours come from the page's CSS. */

const css = (name) => getComputedStyle(document.body).getPropertyValue(name);

/** A canvas made sharp on this screen, cleared, with the colours that the page has now. */
function prepare(canvas, height = canvas.clientHeight) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** A colour as CSS resolves it, with `light-dark()` decided. */
export function resolved(variable) {
  const probe = document.createElement("i");
  probe.style.color = `var(${variable})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

/** Lines over the last seconds, newest at the right. `series`: `{ values, color, fill }`; null leaves a gap. */
export function plot(canvas, series, { format }) {
  const { pen, width, height } = prepare(canvas);
  const left = 3.2 * 16;
  const bottom = height - 18;
  const count = Math.max(...series.map(({ values }) => values.length), 2);
  const top = ceiling(Math.max(...series.flatMap(({ values }) => values.filter((value) => value !== null)), 0));
  const x = (index) => left + ((width - left - 2) * index) / (count - 1);
  const y = (value) => bottom - ((bottom - 6) * value) / top;
  pen.font = `11px ${css("--sans")}`;
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  for (const share of [0, 0.5, 1]) {
    pen.strokeStyle = resolved("--line");
    pen.beginPath();
    pen.moveTo(left, Math.round(y(top * share)) + 0.5);
    pen.lineTo(width, Math.round(y(top * share)) + 0.5);
    pen.stroke();
    pen.fillStyle = resolved("--muted");
    pen.textAlign = "right";
    pen.fillText(format(top * share), left - 6, y(top * share));
  }
  pen.textAlign = "left";
  pen.fillText(`${count} s ago`, left, height - 6);
  pen.textAlign = "right";
  pen.fillText("now", width, height - 6);
  for (const { values, color, fill } of series) line(pen, values, x, y, color, fill ? bottom : null);
}

function line(pen, values, x, y, color, floor) {
  pen.strokeStyle = pen.fillStyle = color;
  pen.lineWidth = 1.6;
  pen.lineJoin = "round";
  for (const run of runs(values)) {
    pen.beginPath();
    for (const [index, value] of run) pen.lineTo(x(index), y(value));
    if (run.length === 1) pen.arc(x(run[0][0]), y(run[0][1]), 1, 0, 7);
    pen.stroke();
    if (floor === null) continue;
    pen.lineTo(x(run.at(-1)[0]), floor);
    pen.lineTo(x(run[0][0]), floor);
    pen.globalAlpha = 0.14;
    pen.fill();
    pen.globalAlpha = 1;
  }
}

/** Stretches without a gap, as `[index, value]` pairs. */
function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index && values[index - 1] !== null && found.length) found.at(-1).push([index, value]);
    else found.push([[index, value]]);
  });
  return found;
}

/** The next round number. */
function ceiling(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * unit >= value) * unit;
}

/** One square a cell: `colors[i]` or null for an empty one. */
export function map(canvas, colors) {
  const width = canvas.clientWidth || 300;
  const size = Math.max(4, Math.min(14, Math.floor(Math.sqrt((width * 220) / Math.max(colors.length, 1)))));
  const columns = Math.max(1, Math.floor(width / size));
  const height = Math.ceil(colors.length / columns) * size;
  canvas.style.height = `${height}px`;
  const { pen } = prepare(canvas, height);
  const empty = resolved("--panel");
  colors.forEach((color, index) => {
    pen.fillStyle = color ?? empty;
    pen.fillRect((index % columns) * size, Math.floor(index / columns) * size, size - 1, size - 1);
  });
}
