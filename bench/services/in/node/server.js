// Counts by timers, and tells by HTTP how far it has come.
let ticks = 0;
setInterval(() => { ticks++; }, 100);
require('http').createServer((request, response) => response.end(`${ticks}\n`)).listen(8080, '0.0.0.0');
