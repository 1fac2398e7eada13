// Two rows of bars over one axis: good images above, defective ones below; one row where the truth is not known.

const HISTOGRAM = { width: 320, row: 46, gap: 18, left: 8, right: 8, bottom: 18 };

function drawHistogram(svg, values, range, mark) {
  const rows = hasTruth
    ? [["good", "good"], ["defective", "defective"]]
    : [["all", "all images"]];
  const { width, row, gap, left, right, bottom } = HISTOGRAM;
  const height = rows.length * (row + gap) + bottom;
  const x = (value) => left + ((value - range[0]) / (range[1] - range[0])) * (width - left - right);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const words = [];
  rows.forEach(([type, title], place) => {
    const own = values.filter((each) => type === "all" || each.defective === (type === "defective"));
    const base = (place + 1) * (row + gap);
    words.push(`${own.length} ${title}`);
    drawBars(svg, own, range, base, x, type);
    svg.append(
      makeSvg("line", { x1: left, x2: width - right, y1: base, y2: base, class: "axis" }),
      label(width - right, base - row - 5, `${title}, ${own.length}`, "end"),
    );
  });
  drawTicks(svg, range, height, x);
  if (mark !== null) {
    svg.append(makeSvg("line", { x1: x(mark), x2: x(mark), y1: 4, y2: height - bottom, class: "mark" }));
    words.push(`alpha at ${percent(mark)}`);
  }
  svg.setAttribute("aria-label", words.join(", "));
}

function drawBars(svg, own, range, base, x, type) {
  const bins = 20;
  const counts = new Array(bins).fill(0);
  for (const { value } of own) {
    const share = (value - range[0]) / (range[1] - range[0]);
    counts[Math.min(bins - 1, Math.max(0, Math.ceil(share * bins - 1e-9) - 1))] += 1;
  }
  const most = Math.max(1, ...counts);
  counts.forEach((count, bin) => {
    if (count === 0) return;
    const step = (range[1] - range[0]) / bins;
    const start = x(range[0] + bin * step);
    const tall = Math.max(1.5, (count / most) * HISTOGRAM.row);
    const bar = makeSvg("rect", {
      x: start + 0.75, y: base - tall, width: x(range[0] + (bin + 1) * step) - start - 1.5, height: tall, class: type,
    });
    const title = makeSvg("title");
    title.textContent = `${count} images, ${axisText(range[0] + bin * step)} to ${axisText(range[0] + (bin + 1) * step)}`;
    bar.append(title);
    svg.append(bar);
  });
}

function drawTicks(svg, range, height, x) {
  for (const share of [0, 0.5, 1]) {
    const value = range[0] + share * (range[1] - range[0]);
    svg.append(label(x(value), height - 4, axisText(value), share === 0 ? "start" : share === 1 ? "end" : "middle"));
  }
}

function axisText(value) {
  return Number(value.toPrecision(2)).toString();
}

function label(x, y, text, anchor) {
  const element = makeSvg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function drawHistograms() {
  const images = chosenImages();
  const of = (key) =>
    images.map((image) => ({ value: findingOf(image)[key], defective: isDefective(image) }));
  const calibrated = page.methods[state.method].calibrated;
  byId("p-figure").hidden = !calibrated;
  if (calibrated) drawHistogram(byId("p-histogram"), of("p"), [0, 1], state.alpha);
  const scores = images.map((image) => findingOf(image).score);
  const range = [Math.min(...scores), Math.max(...scores)];
  byId("score-figure").hidden = scores.length === 0;
  if (scores.length > 0) {
    drawHistogram(byId("score-histogram"), of("score"), range[0] < range[1] ? range : [range[0] - 1, range[0] + 1], null);
  }
}
