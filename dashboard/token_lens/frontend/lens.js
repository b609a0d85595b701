// The lens: puts the parts together, keeps their state, answers pointer and keyboard. Hover never leaves the browser;
// only a chosen metric and a pinned token are told to Python, so that they can stand in the address.
const LENSES = new WeakMap();
const MAX_PINS = 4;
const FIRST_TOKENS = 400; // fills the visible part; the rest follows in the next frames
const MORE_TOKENS = 1024;
const OPEN_AFTER_MS = 120;
const CLOSE_AFTER_MS = 80;
const CHOSEN = { scale: "shared", exponent: 0.5, marks: true }; // outlives a lens: the next rollout looks the same

export default function (component) {
  const { parentElement, data } = component;
  // Side by side, pins stay in the browser: each one told to Python would draw all lenses of the page again.
  const setStateValue = data.compact ? () => {} : component.setStateValue;
  const known = LENSES.get(parentElement);
  if (known) {
    known.tell = setStateValue;
    known.update(data);
    return known.stop;
  }
  const lens = mountLens(parentElement, data, setStateValue);
  LENSES.set(parentElement, lens);
  return () => {
    lens.stop();
    LENSES.delete(parentElement);
  };
}

function mountLens(parent, firstData, setStateValue) {
  const settings = { ...CHOSEN, metric: firstData.metric, help: false };
  const root = make("div", "lens");
  const state = { data: firstData, spans: [], attached: 0, view: null, focus: 0, pins: [], timer: 0, palette: null };
  const lens = { tell: setStateValue, update, stop: () => observer.disconnect() };

  const { bar, show: showToolbar } = buildToolbar(settings, change);
  const help = buildHelp();
  const { legend, show: showLegend } = buildLegend((direction) => stepHot(direction));
  const plot = make("div", "plot");
  const curve = canvasOf(plot, 72, "curve");
  const minimap = canvasOf(plot, 14, "minimap");
  const rule = append(plot, make("div", "rule")).lastChild;
  rule.hidden = true;
  const prompt = make("details", "prompt");
  const strip = make("div", "strip");
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "Completion tokens; arrow keys move, question mark for help");
  strip.dir = "auto";
  const tray = make("div", "tray");
  const forks = make("ol", "forks");
  const table = make("details", "as-table");
  const card = make("div", "card");
  card.hidden = true;
  const forkBox = append(make("details", "fork-box"), make("summary", "", "Where they part: the hottest tokens"), forks);
  forkBox.open = true;
  append(root, bar, help, legend, plot, prompt, append(make("div", "body"), strip, tray), forkBox, table, card);
  parent.appendChild(root);

  function change(next) {
    Object.assign(settings, next);
    for (const name of Object.keys(CHOSEN)) CHOSEN[name] = settings[name];
    if ("metric" in next) lens.tell("metric", next.metric);
    if ("marks" in next) writeTokens(state.spans.slice(0, state.attached), state.data, settings.marks);
    draw();
  }

  function viewNow() {
    const { data, palette } = state;
    const metric = METRICS.find((one) => one.key === settings.metric) ?? METRICS[0];
    const values = valuesOf(data, metric.key);
    const limit = limitOf(data, metric, values, settings.scale);
    const shades = metric.signed ? palette.diverging : palette.sequential;
    const styles = getComputedStyle(root);
    return {
      metric,
      values,
      limit,
      scale: settings.scale,
      limitWords: data.limit_words,
      horizon: data.horizon,
      pair: data.pair,
      hot: hotOf(metric, values, limit),
      shadeOf: (value) => shades[Math.round(placeOf(metric, value, limit, settings.exponent) * SHADES)],
      styles: {
        text: styles.getPropertyValue("--lens-text").trim(),
        line: styles.getPropertyValue("--lens-line").trim(),
        faint: styles.getPropertyValue("--lens-faint").trim(),
      },
    };
  }

  function draw() {
    state.palette = paletteOf(root);
    root.dataset.theme = state.palette.theme;
    state.view = viewNow();
    paintTokens(state.spans.slice(0, state.attached), state.view);
    showToolbar();
    showLegend(state.view, state.palette);
    help.hidden = !settings.help;
    requestAnimationFrame(drawCanvases); // they ask for their width: now it would lay everything out twice
    fillForks(forks, state.data, state.view, (index) => goTo(index, true));
    drawPins();
    const { view, spans, data } = state;
    const idle = window.requestIdleCallback ?? ((action) => setTimeout(action, 50));
    idle(() => state.view === view && labelTokens(spans, data, view));
  }

  function drawCanvases() {
    drawCurve(curve, state.view);
    drawMinimap(minimap, state.view);
  }

  function attachMore(count) {
    const until = Math.min(state.spans.length, state.attached + count);
    const next = state.spans.slice(state.attached, until);
    writeTokens(next, state.data, settings.marks);
    paintTokens(next, state.view);
    attachTokens(strip, state.spans, state.attached, until, state.data);
    state.attached = until;
  }

  function attachRest(spans) {
    if (spans !== state.spans || state.attached === spans.length) return;
    attachMore(MORE_TOKENS);
    requestAnimationFrame(() => attachRest(spans));
  }

  function update(data) {
    if (data.rev !== state.data.rev || !state.spans.length) return build(data);
    // Side by side the page has one choice of metric for all lenses.
    if (!data.compact || data.metric === settings.metric) return;
    settings.metric = data.metric;
    draw();
  }

  function build(data) {
    const started = performance.now();
    Object.assign(state, { data, focus: 0, pins: data.token === null ? [] : [data.token] });
    root.classList.toggle("compact", data.compact);
    if (data.compact) settings.metric = data.metric;
    hideCard();
    state.spans = buildTokens(data);
    state.attached = 0;
    prompt.replaceChildren(make("summary", "", `prompt (${data.prompt.length} tokens)`), make("pre", "", data.prompt.join("")));
    prompt.open = data.prompt.length <= 40;
    table.replaceChildren(make("summary", "", "Show as table"));
    table.open = false;
    draw();
    strip.replaceChildren();
    attachMore(FIRST_TOKENS);
    strip.offsetHeight; // lays out what is visible, so that the measured time is the whole of it
    root.dataset.drawMs = (performance.now() - started).toFixed(1);
    requestAnimationFrame(() => attachRest(state.spans));
    root.dataset.tokens = String(data.texts.length);
  }

  function drawPins() {
    tray.replaceChildren(
      ...state.pins.map((index) => {
        const pinned = make("div", "pinned");
        fillCard(pinned, state.data, index, true);
        return pinned;
      }),
    );
    state.spans.forEach((span, index) => span.setAttribute("aria-pressed", String(state.pins.includes(index))));
  }

  function togglePin(index) {
    state.pins = state.pins.includes(index) ? state.pins.filter((one) => one !== index) : [...state.pins, index].slice(-MAX_PINS);
    if (state.pins.includes(index)) card.hidden = true;
    drawPins();
    lens.tell("token", state.pins.length ? state.pins[state.pins.length - 1] : null);
  }

  function showCard(index) {
    clearTimeout(state.timer);
    attachMore(Math.max(0, index + 1 - state.attached));
    strip.querySelector(".pointed")?.classList.remove("pointed");
    state.spans[index].classList.add("pointed");
    rule.hidden = false;
    rule.style.left = `${((index + 0.5) / state.spans.length) * 100}%`;
    card.hidden = state.pins.includes(index); // its card is there already
    if (card.hidden) return;
    fillCard(card, state.data, index, false);
    placeCard(card, state.spans[index], root);
  }

  function hideCard() {
    clearTimeout(state.timer);
    card.hidden = true;
    rule.hidden = true;
    strip.querySelector(".pointed")?.classList.remove("pointed");
  }

  function later(action, wait) {
    clearTimeout(state.timer);
    state.timer = setTimeout(action, wait);
  }

  function goTo(index, reveal) {
    const span = state.spans[index];
    if (!span) return;
    attachMore(Math.max(0, index + 1 - state.attached));
    state.spans[state.focus].tabIndex = -1;
    state.focus = index;
    span.tabIndex = 0;
    span.focus({ preventScroll: !reveal });
    if (reveal) strip.scrollTop += span.getBoundingClientRect().top - strip.getBoundingClientRect().top - strip.clientHeight / 3;
    showCard(index);
  }

  function stepHot(direction) {
    const hot = state.view.hot;
    if (!hot.length) return;
    const next = direction > 0 ? hot.find((index) => index > state.focus) : hot.findLast((index) => index < state.focus);
    goTo(next ?? (direction > 0 ? hot[0] : hot[hot.length - 1]), true);
  }

  function lineBeside(direction) {
    const here = state.spans[state.focus].getBoundingClientRect();
    let best = null;
    for (let index = state.focus + direction; state.spans[index]; index += direction) {
      const box = state.spans[index].getBoundingClientRect();
      if (Math.abs(box.top - here.top) < 4) continue;
      if (best && Math.abs(box.top - best.top) > 4) break;
      const distance = Math.abs(box.left - here.left);
      if (!best || distance < best.distance) best = { index, top: box.top, distance };
    }
    return best ? best.index : state.focus;
  }

  const KEYS = {
    ArrowLeft: () => goTo(Math.max(0, state.focus - 1), true),
    ArrowRight: () => goTo(Math.min(state.spans.length - 1, state.focus + 1), true),
    ArrowUp: () => goTo(lineBeside(-1), true),
    ArrowDown: () => goTo(lineBeside(1), true),
    Home: () => goTo(0, true),
    End: () => goTo(state.spans.length - 1, true),
    n: () => stepHot(1),
    N: () => stepHot(-1),
    p: () => togglePin(state.focus),
    Enter: () => togglePin(state.focus),
    w: () => change({ marks: !settings.marks }),
    "?": () => change({ help: !settings.help }),
    Escape: hideCard,
  };

  strip.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const metric = state.data.compact ? undefined : METRICS[Number(event.key) - 1];
    const act = metric ? () => change({ metric: metric.key }) : KEYS[event.key];
    if (!act || !state.spans.length) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
  strip.addEventListener("pointerover", (event) => {
    const at = event.target.closest?.(".token")?.at;
    if (at === undefined) return;
    if (card.hidden) later(() => showCard(at), OPEN_AFTER_MS);
    else showCard(at);
  });
  strip.addEventListener("pointerleave", () => later(hideCard, CLOSE_AFTER_MS));
  strip.addEventListener("focusin", (event) => {
    const at = event.target.at;
    if (at !== undefined && at !== state.focus) goTo(at, false);
  });
  strip.addEventListener("focusout", () => later(hideCard, CLOSE_AFTER_MS));
  strip.addEventListener("click", (event) => {
    const at = event.target.closest?.(".token")?.at;
    if (at !== undefined) togglePin(at);
  });
  for (const canvas of [curve, minimap]) {
    canvas.addEventListener("pointermove", (event) => showCard(indexAt(canvas, event, state.spans.length)));
    canvas.addEventListener("pointerleave", () => later(hideCard, CLOSE_AFTER_MS));
    canvas.addEventListener("click", (event) => goTo(indexAt(canvas, event, state.spans.length), true));
  }
  tray.addEventListener("click", (event) => {
    const at = event.target.dataset?.unpin;
    if (at !== undefined) togglePin(Number(at));
  });
  table.addEventListener("toggle", () => {
    if (table.open && table.children.length === 1) table.appendChild(append(make("div", "all-table-box"), tableOf(state.data)));
  });
  // A change of width or of theme (Streamlit swaps the variables in place) asks for new canvases and colours.
  let drawnFor = "";
  const observer = new ResizeObserver(() => {
    const now = `${root.clientWidth} ${getComputedStyle(root).getPropertyValue("--st-background-color")}`;
    if (now === drawnFor || !state.spans.length) return;
    drawnFor = now;
    draw();
  });
  observer.observe(root);
  build(firstData);
  return lens;
}
