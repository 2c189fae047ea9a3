// Every text that is seen and not faded on purpose, and has less contrast to what is behind it than 4.5 to 1.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const up = (element) => (element ? [element, ...up(element.parentElement)] : []);
  const behind = (element) => up(element).map((e) => rgb(getComputedStyle(e).backgroundColor)).find((c) => c[3] > 250);
  const faded = (element) => up(element).some((e) => getComputedStyle(e).opacity < 1);
  const texts = [...document.querySelectorAll("body *")].filter((element) =>
    element.checkVisibility() && !element.closest("script, style, svg") && !faded(element) &&
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()));
  const weak = texts.flatMap((element) => {
    const [low, high] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    return contrast < 4.5 ? [`${element.className || element.tagName} ${element.textContent.slice(0, 20)} ${contrast.toFixed(2)}`] : [];
  });
  return { texts: texts.length, weak: [...new Set(weak)] };
}
