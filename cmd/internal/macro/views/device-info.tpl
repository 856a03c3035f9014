# {host}: line about the device
%if{%device-present{}}{\  LocalDevice %get-device{} [%device-stats{}]\n}
