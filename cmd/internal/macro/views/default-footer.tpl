# {}: what follows a list of resources
%let{slip}{%-{%time{}}{%real-time{}}}\
%if{%>{%{slip}}{%{window}}}{\
	++++++++++++ Lamport time slip: %human-seconds{%{slip}} ++++++++++++\n\
}
