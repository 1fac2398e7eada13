// Numbers as all pages say them.

function percent(share) {
  const value = 100 * share;
  return `${value < 1 ? Number(value.toPrecision(2)) : Math.round(10 * value) / 10} %`;
}

function pText(p) {
  return p === null ? "–" : p < 0.001 ? p.toPrecision(1) : p.toFixed(3);
}

function scoreText(score) {
  return Math.abs(score) >= 1000 ? score.toPrecision(4) : score.toFixed(3);
}
