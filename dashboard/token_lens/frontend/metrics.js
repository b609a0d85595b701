// The seven quantities that can colour a token. All are over the full vocabulary, in nats but for the rank difference.
const METRICS = [
  { key: "reverse_kl", label: "Reverse KL", words: "KL(student‖teacher)", unit: "nats", signed: false },
  { key: "forward_kl", label: "Forward KL", words: "KL(teacher‖student)", unit: "nats", signed: false },
  { key: "jsd", label: "JSD", words: "Jensen-Shannon divergence, at most log 2", unit: "nats", signed: false },
  { key: "delta_logprob", label: "Δ log-prob", words: "log p(teacher) − log p(student) of the sampled token", unit: "nats", signed: true },
  { key: "rank_difference", label: "Rank difference", words: "student's rank − teacher's rank of the sampled token", unit: "ranks", signed: true },
  { key: "student_entropy", label: "Entropy, student", words: "entropy of the student's distribution", unit: "nats", signed: false },
  { key: "teacher_entropy", label: "Entropy, teacher", words: "entropy of the teacher's distribution", unit: "nats", signed: false },
];

function valuesOf(data, key) {
  if (key === "delta_logprob") return data.teacher_logprob.map((teacher, at) => teacher - data.student_logprob[at]);
  if (key === "rank_difference") return data.student_rank.map((student, at) => student - data.teacher_rank[at]);
  return data[key];
}

// Ranks run to the size of the vocabulary: they are compared on a log scale.
function onScale(metric, value) {
  return metric.key === "rank_difference" ? Math.sign(value) * Math.log2(1 + Math.abs(value)) : value;
}

// Place of a value in the ramp, 0 … 1 (signed: 0 … 1 with zero at 0.5), compressed by a power because divergence is
// heavy-tailed: without it one token would be dark and all others white.
function placeOf(metric, value, limit, exponent) {
  const share = Math.max(-1, Math.min(1, onScale(metric, value) / limit));
  const bent = Math.sign(share) * Math.abs(share) ** exponent;
  return metric.signed ? (bent + 1) / 2 : Math.max(0, bent);
}

function limitOf(data, metric, values, scale) {
  if (scale === "shared") return onScale(metric, data.limits[metric.key]);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(onScale(metric, value))), 0);
  return largest || 1;
}

const HOT_SHARE = 0.05;
const NOTABLE = 0.02; // of the scale's limit: a token below it is not hot, even where nothing is hotter

// Indices of the hottest 5 %, in reading order.
function hotOf(metric, values, limit) {
  const wanted = Math.max(1, Math.round(values.length * HOT_SHARE));
  return values
    .map((value, index) => [Math.abs(onScale(metric, value)), index])
    .filter(([size]) => size >= NOTABLE * limit)
    .sort((left, right) => right[0] - left[0])
    .slice(0, wanted)
    .map(([, index]) => index)
    .sort((left, right) => left - right);
}

function inUnit(metric, value) {
  if (metric.key === "rank_difference") return `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(Math.round(value))}`;
  const size = Math.abs(value).toFixed(Math.abs(value) < 10 ? 3 : 1);
  return `${value < 0 ? "−" : metric.signed && value > 0 ? "+" : ""}${size}`;
}

function limitText(metric, limit) {
  return metric.key === "rank_difference" ? String(Math.round(2 ** limit - 1)) : limit.toPrecision(3).replace(/\.?0+$/, "");
}

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  return share > 0 && share < 0.05 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}
