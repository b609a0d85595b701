// The metric by completion position as a line, and the same as a strip of colours (the minimap). Both are canvases: they
// hold one point per token. Pointer movement is answered by moving one element, never by drawing again.
function canvasOf(parent, height, className) {
  const canvas = make("canvas", className);
  canvas.style.height = `${height}px`;
  canvas.setAttribute("aria-hidden", "true");
  parent.appendChild(canvas);
  return canvas;
}

function pixels(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 600;
  const height = canvas.clientHeight || 60;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function drawCurve(canvas, view) {
  const { context, width, height } = pixels(canvas);
  const { values, metric, limit, styles } = view;
  const count = values.length;
  const low = metric.signed ? -limit : 0;
  const x = (index) => ((index + 0.5) / count) * width;
  const y = (value) => {
    const share = (Math.max(low, Math.min(limit, onScale(metric, value))) - low) / (limit - low);
    return height - 4 - share * (height - 10);
  };
  context.strokeStyle = styles.faint;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(0, y(0));
  context.lineTo(width, y(0));
  context.stroke();
  context.strokeStyle = styles.line;
  context.lineWidth = 1.25;
  context.beginPath();
  values.forEach((value, index) => (index ? context.lineTo(x(index), y(value)) : context.moveTo(x(index), y(value))));
  context.stroke();
  horizonLine(context, view, width, height);
}

function drawMinimap(canvas, view) {
  const { context, width, height } = pixels(canvas);
  const count = view.values.length;
  view.values.forEach((value, index) => {
    context.fillStyle = view.shadeOf(value).background;
    const from = Math.floor((index / count) * width);
    context.fillRect(from, 0, Math.max(1, Math.ceil(((index + 1) / count) * width) - from), height);
  });
  horizonLine(context, view, width, height);
}

function horizonLine(context, view, width, height) {
  if (view.horizon === null || view.horizon >= view.values.length) return;
  const at = (view.horizon / view.values.length) * width;
  context.save();
  context.setLineDash([4, 3]);
  context.strokeStyle = view.styles.text;
  context.beginPath();
  context.moveTo(at, 0);
  context.lineTo(at, height);
  context.stroke();
  context.restore();
}

function indexAt(canvas, event, count) {
  const box = canvas.getBoundingClientRect();
  return Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)));
}
