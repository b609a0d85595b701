// Toolbar and legend. A control changes `settings` and says so; it knows nothing of the rest of the lens.
const SHORTCUTS = [
  ["← →", "token before, token after"],
  ["↑ ↓", "line above, line below"],
  ["n / N", "next, previous hot token"],
  ["p or Enter", "pin or unpin the card (up to 4)"],
  ["1 … 7", "choose the metric"],
  ["w", "show or hide blanks"],
  ["Esc", "close the card"],
  ["?", "this help"],
];

function buildToolbar(settings, changed) {
  const bar = make("div", "toolbar");
  const metrics = make("div", "metrics");
  metrics.setAttribute("role", "radiogroup");
  metrics.setAttribute("aria-label", "Metric that colours the tokens");
  METRICS.forEach((metric, at) => {
    const button = make("button", "metric", metric.label);
    button.type = "button";
    button.title = `${metric.words}, in ${metric.unit} (key ${at + 1})`;
    button.dataset.metric = metric.key;
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => changed({ metric: metric.key }));
    metrics.appendChild(button);
  });
  const scale = make("select", "scale");
  scale.setAttribute("aria-label", "Colour scale");
  for (const [value, text] of [["shared", "Scale: shared"], ["rollout", "Scale: this rollout"]]) {
    const option = make("option", "", text);
    option.value = value;
    scale.appendChild(option);
  }
  scale.addEventListener("change", () => changed({ scale: scale.value }));
  const intensity = make("input", "intensity");
  Object.assign(intensity, { type: "range", min: "0", max: "1", step: "0.05" });
  intensity.setAttribute("aria-label", "Colour intensity");
  intensity.addEventListener("input", () => changed({ exponent: 1 - Number(intensity.value) * 0.8 }));
  const reset = make("button", "quiet", "reset");
  reset.type = "button";
  reset.title = "Back to power 0.5";
  reset.addEventListener("click", () => changed({ exponent: 0.5 }));
  const marks = make("button", "toggle", "· ⏎");
  marks.type = "button";
  marks.title = "Show blanks and newlines (w)";
  marks.setAttribute("aria-label", "Show blanks and newlines");
  marks.addEventListener("click", () => changed({ marks: !settings.marks }));
  const help = make("button", "toggle", "?");
  help.type = "button";
  help.title = "Keyboard shortcuts (?)";
  help.setAttribute("aria-label", "Keyboard shortcuts");
  help.addEventListener("click", () => changed({ help: !settings.help }));
  const sliders = append(make("label", "intensity-label"), make("span", "", "Intensity"), intensity);
  append(bar, metrics, append(make("div", "options"), scale, append(make("span", "group"), sliders, reset), marks, help));
  const show = () => {
    for (const button of metrics.children) {
      const chosen = button.dataset.metric === settings.metric;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
    scale.value = settings.scale;
    intensity.value = String((1 - settings.exponent) / 0.8);
    marks.setAttribute("aria-pressed", String(settings.marks));
    help.setAttribute("aria-expanded", String(settings.help));
  };
  return { bar, show };
}

function buildHelp() {
  const help = make("dl", "help");
  for (const [keys, meaning] of SHORTCUTS) append(help, append(make("div"), make("dt", "", keys), make("dd", "", meaning)));
  return help;
}

function buildLegend(step) {
  const legend = make("div", "legend");
  const ramp = make("span", "ramp");
  const low = make("span", "number");
  const high = make("span", "number");
  const words = make("span", "words");
  const before = make("button", "quiet", "‹ N");
  const after = make("button", "quiet", "n ›");
  const count = make("span", "hot-count");
  for (const [button, direction, label] of [[before, -1, "Previous hot token"], [after, 1, "Next hot token"]]) {
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => step(direction));
  }
  append(legend, append(make("span", "scale-row"), low, ramp, high), words, append(make("span", "hot-row"), count, before, after));
  const show = (view, palette) => {
    const stops = palette.gradients[view.metric.signed ? "diverging" : "sequential"];
    ramp.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    const limit = limitText(view.metric, view.limit);
    low.textContent = view.metric.signed ? `≤ −${limit}` : "0";
    high.textContent = `≥ ${view.metric.signed ? "+" : ""}${limit} ${view.metric.unit}`;
    const scale = view.scale === "shared" ? view.limitWords[view.metric.key] : "largest of this rollout";
    const sides = view.metric.signed ? " · purple: the teacher likes the token more, orange: less" : "";
    const pair = view.pair ? ` · ${view.pair}` : "";
    words.textContent = `${view.metric.words} · scale: ${scale} · full vocabulary${sides}${pair}`;
    count.textContent = view.hot.length ? `${view.hot.length} hottest underlined` : "no token stands out";
  };
  return { legend, show };
}
