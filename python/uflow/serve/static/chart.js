// The last p-values, the oldest left, on a logarithmic axis; the limits; where the monitor says that the line changed.

const CHART = { width: 560, height: 230, left: 38, right: 10, top: 10, bottom: 24 };

function drawChart(svg, chart) {
  const { width, height, left, right, top, bottom } = CHART;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const values = chart.values;
  const least = Math.min(0.01, ...values, chart.alpha || 1) / 1.3;
  const x = (place) => left + ((place + 0.5) / Math.max(values.length, 20)) * (width - left - right);
  const y = (p) => top + (Math.log(p) / Math.log(least)) * (height - top - bottom);
  drawAlarm(svg, chart.alarm, x, values.length);
  for (let p = 1; p >= least; p /= 10) {
    svg.append(line(left, width - right, y(p), "axis"), text(left - 6, y(p) + 4, Number(p.toPrecision(1)).toString(), "end"));
  }
  for (const [limit, name] of [[chart.alpha, "alpha"], [chart.look, "look"]]) {
    if (limit) svg.append(line(left, width - right, y(limit), `limit ${name}`));
  }
  values.forEach((p, place) => {
    const type = p <= chart.alpha + 1e-9 ? "reject" : chart.look && p <= chart.look + 1e-9 ? "look" : "good";
    svg.append(makeSvg("circle", { cx: x(place), cy: y(p), r: 2.6, class: type }));
  });
  chart.times.forEach((time, place) => {
    const apart = x(values.length - 1) - x(0) > 120; // else one would be written over the other
    if (place === 0 || apart) svg.append(text(x(place * (values.length - 1)), height - 6, time, place === 0 ? "start" : "end"));
  });
  const limits = chart.alpha ? `, limit ${percent(chart.alpha)}` : "";
  svg.setAttribute("aria-label", `the last ${values.length} p-values${limits}${chart.alarm ? `, ${alarmText(chart.alarm)}` : ""}`);
}

function drawAlarm(svg, alarm, x, count) {
  if (alarm === null) return;
  const { height, top, bottom } = CHART;
  const start = x(Math.max(0, alarm.since_place) - 0.5);
  const size = { y: top, height: height - top - bottom };
  svg.append(makeSvg("rect", { x: start, width: Math.max(2, x(count - 0.5) - start), class: "changed", ...size }));
  if (alarm.place >= 0) svg.append(makeSvg("line", { x1: x(alarm.place), x2: x(alarm.place), y1: top, y2: height - bottom, class: "alarm" }));
}

function line(x1, x2, y, type) {
  return makeSvg("line", { x1, x2, y1: y, y2: y, class: type });
}

function text(x, y, words, anchor) {
  const element = makeSvg("text", { x, y, "text-anchor": anchor });
  element.textContent = words;
  return element;
}

function alarmText(alarm) {
  return `the line has changed: ${alarm.change}, most likely since part ${alarm.since} of this watch (noticed at ${alarm.part})`;
}
