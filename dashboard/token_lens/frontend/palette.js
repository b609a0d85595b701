// Colours of the lens. Sequential for quantities >= 0 (zero is the page's own background), diverging PuOr for signed
// ones: purple = the teacher likes the token more than the student does, orange = less. Never red against green.
const RAMPS = {
  light: {
    sequential: ["#ffffff", "#fff7bc", "#fec44f", "#fe9929", "#d95f0e", "#993404"],
    diverging: ["#e66101", "#fdb863", "#f7f7f7", "#b2abd2", "#5e3c99"],
  },
  dark: {
    sequential: ["#0e1117", "#2c2440", "#59386b", "#96457a", "#d6617a", "#f6a97a"],
    diverging: ["#ff9f45", "#7d4c1a", "#171a21", "#4c3f79", "#b8a8f5"],
  },
};
const SHADES = 128; // steps of a ramp: finer than the eye tells apart on a word

function rgbOf(colour) {
  const hex = /^#([0-9a-f]{6})$/i.exec(colour.trim());
  if (hex) return [0, 2, 4].map((at) => parseInt(hex[1].slice(at, at + 2), 16));
  const numbers = /rgba?\(([^)]+)\)/.exec(colour);
  return numbers ? numbers[1].split(/[ ,/]+/).slice(0, 3).map(Number) : [255, 255, 255];
}

// Relative luminance of WCAG 2: it decides between dark and light text.
function luminance(rgb) {
  const [red, green, blue] = rgb.map((part) => {
    const share = part / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function readableOn(rgb) {
  const light = luminance(rgb);
  return (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}

// The ramp as SHADES + 1 ready pairs of background and text colour.
function shadesOf(stops) {
  const colours = stops.map(rgbOf);
  return Array.from({ length: SHADES + 1 }, (_, index) => {
    const place = (index / SHADES) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    const share = place - left;
    const rgb = colours[left].map((part, channel) => Math.round(part + (colours[left + 1][channel] - part) * share));
    return { background: `rgb(${rgb.join(",")})`, text: readableOn(rgb) };
  });
}

// Reads the theme from the page, so that the lens follows light, dark and custom themes.
function paletteOf(element) {
  const page = getComputedStyle(element).getPropertyValue("--st-background-color") || "#ffffff";
  const theme = luminance(rgbOf(page)) < 0.4 ? "dark" : "light";
  const sequential = [...RAMPS[theme].sequential];
  sequential[0] = `rgb(${rgbOf(page).join(",")})`;
  return {
    theme,
    page,
    sequential: shadesOf(sequential),
    diverging: shadesOf(RAMPS[theme].diverging),
    gradients: { sequential, diverging: RAMPS[theme].diverging },
  };
}
